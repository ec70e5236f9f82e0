//! A bad network: a TCP proxy in front of a broker, told by the test what should go wrong.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Pieces in which bytes are passed on.
const PIECE: usize = 16 << 10;
/// Pieces under way in one direction of a connection; with a delay, this bounds the rate.
const IN_FLIGHT: usize = 1024;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From programs to the broker.
    Up,
    /// From the broker to programs.
    Down,
}

/// A proxy on a free port of 127.0.0.1. It passes everything on until it is told otherwise; what it is told
/// holds for open and for new connections. Dropping it cuts them all.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    /// Changes when all connections are to be cut.
    cuts: watch::Sender<u64>,
    network: watch::Sender<Network>,
    /// Bytes that may still pass before all connections are cut, up and down.
    left: [AtomicU64; 2],
    passed: [AtomicU64; 2],
    open: AtomicUsize,
}

/// The state of the network.
#[derive(Debug, Clone, Copy, Default)]
struct Network {
    refuses: bool,
    silent: bool,
    delay: Duration,
}

impl Proxy {
    /// Starts a proxy in front of `server`, `nats://host:port` or `host:port`. Panics when there is no port: the
    /// test cannot go on.
    #[allow(clippy::panic, reason = "a test harness reports by panicking")]
    pub async fn start(server: &str) -> Self {
        let target = server.strip_prefix("nats://").unwrap_or(server).to_owned();
        let bound = async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            let address = listener.local_addr()?;
            Ok::<_, io::Error>((listener, address))
        };
        let (listener, address) = match bound.await {
            Ok(bound) => bound,
            Err(error) => panic!("the proxy has no port: {error}"),
        };
        let unlimited = || [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)];
        let shared = Arc::new(Shared {
            cuts: watch::channel(0).0,
            network: watch::channel(Network::default()).0,
            left: unlimited(),
            passed: Default::default(),
            open: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, target, shared.clone()));
        Self { address, shared, accepting }
    }

    /// Address for clients.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Cuts every open connection, in the middle of whatever it carries. New ones are let through.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts every connection, and ends new ones at once until [`Self::admit`].
    pub fn refuse(&self) {
        self.shared.network.send_modify(|network| network.refuses = true);
        self.shared.cut();
    }

    /// Lets new connections through again.
    pub fn admit(&self) {
        self.shared.network.send_modify(|network| network.refuses = false);
    }

    /// Cuts all connections once, when `bytes` more have passed in that direction over all of them.
    pub fn cut_after(&self, way: Way, bytes: u64) {
        self.shared.left[way as usize].store(bytes, Ordering::SeqCst);
    }

    /// Holds all bytes back, as a network does that is gone without a word, until [`Self::speak`].
    pub fn silence(&self) {
        self.shared.network.send_modify(|network| network.silent = true);
    }

    /// Passes on what was held back.
    pub fn speak(&self) {
        self.shared.network.send_modify(|network| network.silent = false);
    }

    /// Delays every byte by this, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.shared.network.send_modify(|network| network.delay = delay);
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Bytes passed on so far.
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.passed[way as usize].load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.cut();
    }
}

impl Shared {
    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How many of `wanted` bytes may pass, and whether that is where the connections end.
    fn take(&self, way: Way, wanted: usize) -> (usize, bool) {
        let wanted = wanted as u64;
        let spend = |left: u64| match left {
            u64::MAX => None,
            // Once only: the connections that follow are whole.
            left if left <= wanted => Some(u64::MAX),
            left => Some(left - wanted),
        };
        match self.left[way as usize].fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend) {
            Ok(left) if left <= wanted => (left as usize, true),
            _ => (wanted as usize, false),
        }
    }
}

async fn accept(listener: TcpListener, target: String, shared: Arc<Shared>) {
    loop {
        // Too many open files, for instance: the next attempt may succeed.
        let Ok((near, _)) = listener.accept().await else { continue };
        if shared.network.borrow().refuses {
            continue;
        }
        tokio::spawn(connect(near, target.clone(), shared.clone()));
    }
}

/// One connection, to its end.
async fn connect(near: TcpStream, target: String, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    // A broker that is down looks like a connection that ends at once.
    let Ok(far) = TcpStream::connect(&target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    shared.open.fetch_add(1, Ordering::SeqCst);
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::select! {
        _ = pass(Way::Up, near_read, far_write, &shared) => {}
        _ = pass(Way::Down, far_read, near_write, &shared) => {}
        _ = cuts.changed() => {}
    }
    shared.open.fetch_sub(1, Ordering::SeqCst);
}

/// Passes bytes on in one direction until either side ends.
async fn pass(way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let mut network = shared.network.subscribe();
    let reading = async {
        loop {
            let mut piece = vec![0; PIECE];
            let read = from.read(&mut piece).await?;
            let (allowed, last) = shared.take(way, read);
            piece.truncate(allowed);
            let due = Instant::now() + shared.network.borrow().delay;
            if read == 0 || sender.send((due, piece)).await.is_err() || last {
                // The other side is to get what was allowed: the channel ends, and then the writing.
                drop(sender);
                return Ok::<_, io::Error>(last);
            }
        }
    };
    let writing = async {
        while let Some((due, piece)) = receiver.recv().await {
            sleep_until(due).await;
            // The sender lives as long as the connection.
            let _ = network.wait_for(|network| !network.silent).await;
            to.write_all(&piece).await?;
            shared.passed[way as usize].fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    };
    let (last, ()) = tokio::try_join!(reading, writing)?;
    if last {
        shared.cut();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address.to_string()
    }

    async fn dial(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.address).await.unwrap()
    }

    /// What comes back before the connection ends or falls silent for a moment.
    async fn answer(stream: &mut TcpStream) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 64];
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut bytes)).await.ok()?;
        bytes.truncate(read.unwrap_or(0));
        Some(bytes)
    }

    #[tokio::test]
    async fn it_passes_on_cuts_and_refuses() {
        let proxy = Proxy::start(&echo().await).await;
        let mut stream = dial(&proxy).await;
        stream.write_all(b"hello").await.unwrap();
        assert_eq!(answer(&mut stream).await.unwrap(), b"hello");
        assert_eq!((proxy.connections(), proxy.passed(Way::Up), proxy.passed(Way::Down)), (1, 5, 5));
        proxy.cut();
        assert_eq!(answer(&mut stream).await.unwrap(), b"");

        proxy.refuse();
        assert_eq!(answer(&mut dial(&proxy).await).await.unwrap(), b"");
        proxy.admit();
        let mut stream = dial(&proxy).await;
        stream.write_all(b"again").await.unwrap();
        assert_eq!(answer(&mut stream).await.unwrap(), b"again");
    }

    #[tokio::test]
    async fn it_cuts_in_the_middle_once() {
        let proxy = Proxy::start(&echo().await).await;
        for expected in [&b"hel"[..], b"hello"] {
            if expected.len() == 3 {
                proxy.cut_after(Way::Down, 3);
            }
            let mut stream = dial(&proxy).await;
            stream.write_all(b"hello").await.unwrap();
            assert_eq!(answer(&mut stream).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn it_delays_and_falls_silent() {
        let proxy = Proxy::start(&echo().await).await;
        let mut stream = dial(&proxy).await;
        proxy.delay(Duration::from_millis(100));
        let sent = Instant::now();
        stream.write_all(b"slow").await.unwrap();
        assert_eq!(answer(&mut stream).await.unwrap(), b"slow");
        assert!(sent.elapsed() >= Duration::from_millis(200));
        proxy.delay(Duration::ZERO);
        proxy.silence();
        stream.write_all(b"held").await.unwrap();
        assert_eq!(answer(&mut stream).await, None);
        proxy.speak();
        assert_eq!(answer(&mut stream).await.unwrap(), b"held");
    }
}
