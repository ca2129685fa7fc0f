//! The codec of the services: protobuf, with a bound to the number of a message's fields.
//!
//! An empty element of a list takes two bytes on the wire and a hundred in memory, so a bound to the bytes alone is none to the memory.

use std::fmt;
use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf as _;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Fields that a message may have, the elements of its lists counted one by one: no message of ours comes near it.
pub const MOST_FIELDS: usize = 4096;

/// Protobuf, bounded.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<T, U> fmt::Debug for Codec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Codec")
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Bounded<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Bounded(ProstDecoder::default())
    }
}

/// Looks at a message's bytes before anything is made of them.
#[derive(Debug)]
pub struct Bounded<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for Bounded<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The library keeps a message in one piece; of one in several, too little would be seen.
        if buffer.chunk().len() < buffer.remaining() {
            return Err(Status::internal("the message is not in one piece"));
        }
        match fields(buffer.chunk()) {
            Some(..=MOST_FIELDS) => self.0.decode(buffer),
            Some(_) => Err(Status::invalid_argument(format!("the message has more than {MOST_FIELDS} fields"))),
            None => Err(Status::internal("the message is no protobuf")),
        }
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// How many fields a message has, those of its own fields not counted. `None`: it is malformed.
fn fields(mut bytes: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !bytes.is_empty() {
        let length = match varint(&mut bytes)? & 7 {
            0 => varint(&mut bytes).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            // Groups, which nobody writes any more.
            _ => return None,
        };
        bytes = bytes.get(length..)?;
        count += 1;
    }
    Some(count)
}

/// Takes a number of seven bits a byte, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests;
