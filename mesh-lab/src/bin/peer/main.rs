//! Servers and clients that do what applications do to sockets, and report it as JSON on their last line of output.

mod ask;
mod bulk;
mod connect;
mod grpc;
mod hold;
mod http;
mod repeat;
mod serve;
mod throw;
mod udp;
mod web_socket;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "mesh-lab-peer", about = "Servers and clients that do what applications do to sockets; reports are JSON.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A TCP server; a line of JSON for each connection accepted and each that ended.
    Serve(serve::Arguments),
    /// One TCP connection.
    Connect(connect::Arguments),
    /// A TCP connection to an echo server that sends and receives a line at intervals until it is ended.
    Tick(connect::TickArguments),
    /// A large transfer both ways at once with a `bulk` server; digests are compared.
    Bulk(bulk::Arguments),
    /// One TCP connection to an echo server after the other.
    Repeat(repeat::Arguments),
    /// Many TCP connections that do nothing.
    Hold(hold::Arguments),
    /// One TCP connection that sends the bytes of a file, and no care what they are.
    Throw(throw::Arguments),
    /// An HTTP server that tells what it was asked.
    Http(http::Arguments),
    /// A gRPC server that does as its calls ask.
    GrpcServe(grpc::ServeArguments),
    /// gRPC calls on one connection.
    GrpcCall(grpc::CallArguments),
    /// A WebSocket server that sends back what it gets.
    WsServe(web_socket::ServeArguments),
    /// One WebSocket.
    WsCall(web_socket::CallArguments),
    /// Makes HTTP requests one after the other: a JSON list on standard input, lists of answers on standard output.
    Ask(ask::Arguments),
    /// A UDP server that sends back what it gets.
    UdpEcho(udp::EchoArguments),
    /// One datagram and its answer.
    Udp(udp::Arguments),
    /// Waits for standard input to close, then removes the world of this directory unless it was kept.
    #[command(hide = true)]
    Guard {
        /// The world's directory.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Connect(arguments) => connect::run(&arguments),
        Command::Tick(arguments) => connect::tick(&arguments),
        Command::Bulk(arguments) => bulk::run(&arguments),
        Command::Repeat(arguments) => repeat::run(&arguments),
        Command::Hold(arguments) => hold::run(&arguments),
        Command::Throw(arguments) => throw::run(&arguments),
        Command::Http(arguments) => http::run(&arguments),
        Command::GrpcServe(arguments) => grpc::serve(&arguments),
        Command::GrpcCall(arguments) => grpc::call(&arguments),
        Command::WsServe(arguments) => web_socket::serve(&arguments),
        Command::WsCall(arguments) => web_socket::call(&arguments),
        Command::Ask(arguments) => ask::run(&arguments),
        Command::UdpEcho(arguments) => udp::echo(&arguments),
        Command::Udp(arguments) => udp::run(&arguments),
        Command::Guard { directory } => mesh_lab::world::guard(&directory),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
