//! Proxies between a pilot and a broker, for networks that can't be had here: one that cuts connections when nothing
//! else would cut them there, and one that makes the broker far away. The first finds frames of AMQP 0-9-1 in what
//! passes, no more.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{SOON, eventually};

/// What becomes of the first acknowledgement. Nothing comes back from the broker after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstAck {
    /// The broker gets it.
    Arrives,
    /// It is lost with the connection.
    IsLost,
}

/// When every connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EachCut {
    /// So long after it was made.
    After(Duration),
    /// Before an event arrives.
    AtDelivery,
    /// Before a result arrives. The question whether the pilot may publish passes.
    AtPublish,
}

/// Ends with the tests.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
}

/// The rest of a method frame's header, its size, and the class and method of `basic.ack`.
const ACK: [u8; 8] = [0, 0, 0, 13, 0, 60, 0, 80];
/// Class and method.
const PUBLISH: [u8; 4] = [0, 60, 0, 40];
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// A frame's type, channel and size, which come before that.
const HEADER: usize = 7;
/// In the name of the queue that the pilot asks for permission with.
const PERMISSION: &[u8] = b"ewms-pilot-permission";

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    find(bytes, part).is_some()
}

impl Proxy {
    /// In front of the broker at `address`, which has taken an acknowledgement when `has_arrived` says so. Only the
    /// connection of the first acknowledgement is cut.
    pub(crate) fn start(
        address: &str,
        first_ack: FirstAck,
        has_arrived: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let has_cut = Arc::new(AtomicBool::new(false));
        let has_arrived = Arc::new(has_arrived);
        Self::serve(address, move |server, client| {
            let Ok((from_server, to_client)) = pair(&server, &client) else {
                return;
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
                    if !holds(bytes, &ACK) || has_cut.swap(true, Ordering::SeqCst) {
                        return Next::Pass;
                    }
                    is_cut.store(true, Ordering::SeqCst);
                    match first_ack {
                        FirstAck::Arrives => Next::PassAndCut(has_arrived.as_ref()),
                        FirstAck::IsLost => Next::Cut,
                    }
                });
            });
        })
    }

    /// In front of the broker at `address`. It cuts every connection.
    pub(crate) fn cutting_each(address: &str, cut: EachCut) -> Self {
        Self::serve(address, move |server, client| {
            let Ok((from_server, to_client)) = pair(&server, &client) else {
                return;
            };
            if let EachCut::After(life) = cut
                && let Ok((from_server, to_client)) = pair(&server, &client)
            {
                thread::spawn(move || {
                    thread::sleep(life);
                    end([from_server, to_client]);
                });
            }
            thread::spawn(move || {
                pass(from_server, to_client, |bytes| {
                    let delivery = find(bytes, &DELIVER).filter(|_| cut == EachCut::AtDelivery);
                    // What comes before it arrives: among it is the answer to who asked for events.
                    delivery.map_or(Next::Pass, |at| Next::PassSomeAndCut(at - HEADER))
                });
            });
            thread::spawn(move || {
                pass(client, server, |bytes| {
                    let publishes = holds(bytes, &PUBLISH) && !holds(bytes, PERMISSION);
                    if publishes && cut == EachCut::AtPublish {
                        Next::Cut
                    } else {
                        Next::Pass
                    }
                });
            });
        })
    }

    /// In front of the broker at `address`. What passes arrives so much later, in either direction.
    pub(crate) fn delaying(address: &str, each_way: Duration) -> Self {
        Self::serve(address, move |server, client| {
            let Ok((from_server, to_client)) = pair(&server, &client) else {
                return;
            };
            pass_late(from_server, to_client, each_way);
            pass_late(client, server, each_way);
        })
    }

    fn serve(address: &str, connect: impl Fn(TcpStream, TcpStream) + Send + 'static) -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let broker = address.to_owned();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(&broker) {
                    connect(server, client);
                }
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
    /// So many bytes of it.
    PassSomeAndCut(usize),
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
            Next::PassSomeAndCut(size) => {
                let _ = to.write_all(&bytes[..size]);
                break;
            }
            Next::PassAndCut(has_arrived) => {
                // That it failed would show in what `has_arrived` says.
                let _ = to.write_all(bytes);
                let arrived = eventually(SOON, has_arrived);
                assert!(arrived, "the broker did not take the acknowledgement");
                break;
            }
        }
    }
    end([from, to]);
}

/// Until one end closes. Bounded by what the two ends send each other unasked.
fn pass_late(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(size @ 1..) = from.read(&mut buffer) {
            if sender
                .send((Instant::now() + delay, buffer[..size].to_vec()))
                .is_err()
            {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (at, bytes) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

fn end(ends: [TcpStream; 2]) {
    for end in ends {
        // Gone is what it may well be.
        let _ = end.shutdown(Shutdown::Both);
    }
}
