use mesh_common::policy::{Facts, Header};
use mesh_common::verdict::decide;
use proptest::prelude::*;

use super::*;
use crate::policy::PortMode;

fn mode() -> impl Strategy<Value = MtlsMode> {
    prop_oneof![Just(MtlsMode::Strict), Just(MtlsMode::Permissive), Just(MtlsMode::Disable)]
}

proptest! {
    #[test]
    fn the_row_denies_just_where_mtls_is_demanded(
        all in mode(),
        ports in proptest::collection::btree_map(1u16..6, mode(), 0..5),
    ) {
        let by_port = ports.into_iter().map(|(port, mode)| (port, PortMode { mode, by: None })).collect();
        let modes = MtlsModes { all: PortMode { mode: all, by: None }, ports: by_port };
        let row = strict_row(&modes);
        let header = Header { len: row.len() as u32, ..Header::default() };
        for port in 1..8u16 {
            let facts = Facts { port: port.into(), ..Facts::default() };
            let decision = decide(&header, &row, &facts, |_| unreachable!("it asks for no identity"));
            prop_assert_eq!(decision.allowed, modes.on(port).mode != MtlsMode::Strict);
            prop_assert_eq!(decision.policy, 0);
        }
    }
}
