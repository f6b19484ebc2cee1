//! A proxy between a pilot and a broker that cuts the connection at the first acknowledgement, when
//! nothing else would cut it there. Every other connection passes. Knows of AMQP what an acknowledgement
//! looks like, no more.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{SOON, eventually};

/// What becomes of the first acknowledgement. Nothing comes back from the broker after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstAck {
    /// The broker gets it.
    Arrives,
    /// It is lost with the connection.
    IsLost,
}

/// See the module. It ends with the tests.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
}

/// The rest of a method frame's header, its size, and the class and method of `basic.ack` (AMQP 0-9-1).
const ACK: [u8; 8] = [0, 0, 0, 13, 0, 60, 0, 80];

impl Proxy {
    /// In front of the broker at `address`, which has taken an acknowledgement when `has_arrived` says so.
    pub(crate) fn start(
        address: &str,
        first_ack: FirstAck,
        has_arrived: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let broker = address.to_owned();
        let has_cut = Arc::new(AtomicBool::new(false));
        let has_arrived = Arc::new(has_arrived);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&broker) else {
                    continue;
                };
                let Ok((from_server, to_client)) = pair(&server, &client) else {
                    continue;
                };
                // Of this connection: a later one isn't cut.
                let is_cut = Arc::new(AtomicBool::new(false));
                let silenced = Arc::clone(&is_cut);
                thread::spawn(move || {
                    pass(from_server, to_client, |_| {
                        if silenced.load(Ordering::SeqCst) {
                            Next::Hold
                        } else {
                            Next::Pass
                        }
                    });
                });
                let (has_cut, has_arrived) = (Arc::clone(&has_cut), Arc::clone(&has_arrived));
                thread::spawn(move || {
                    pass(client, server, |bytes| {
                        let is_ack = bytes.windows(ACK.len()).any(|part| part == ACK);
                        if !is_ack || has_cut.swap(true, Ordering::SeqCst) {
                            return Next::Pass;
                        }
                        is_cut.store(true, Ordering::SeqCst);
                        match first_ack {
                            FirstAck::Arrives => Next::PassAndCut(has_arrived.as_ref()),
                            FirstAck::IsLost => Next::Cut,
                        }
                    });
                });
            }
        });
        Self { port }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

enum Next<'a> {
    Pass,
    /// Keep it: the connection is about to be cut.
    Hold,
    Cut,
    /// Cut when this holds.
    PassAndCut(&'a dyn Fn() -> bool),
}

fn pair(server: &TcpStream, client: &TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    Ok((server.try_clone()?, client.try_clone()?))
}

/// Until one end closes. The pilot's writer sends each acknowledgement in one piece.
fn pass<'a>(mut from: TcpStream, mut to: TcpStream, next: impl Fn(&[u8]) -> Next<'a>) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(size @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..size];
        match next(bytes) {
            Next::Pass => {
                if to.write_all(bytes).is_err() {
                    break;
                }
            }
            Next::Hold => {}
            Next::Cut => break,
            Next::PassAndCut(has_arrived) => {
                // That it failed would show in what `has_arrived` says.
                let _ = to.write_all(bytes);
                let arrived = eventually(SOON, has_arrived);
                assert!(arrived, "the broker did not take the acknowledgement");
                break;
            }
        }
    }
    for end in [from, to] {
        // Gone is what it may well be.
        let _ = end.shutdown(Shutdown::Both);
    }
}
