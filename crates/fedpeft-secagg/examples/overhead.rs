//! What secure aggregation costs: bytes and time of a client and of the server, for whole rounds whose sums are checked. Linux
//! only, for the times.
//!
//!     cargo run --release --example overhead -p fedpeft-secagg
//!     cargo run --release --example overhead -p fedpeft-secagg -- --clients 100 --values 55000 --dropout 0.1

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::{num::NonZero, thread, time::Duration};

use clap::Parser;
use fedpeft_secagg::{
    Ask, Client, Encoding, Graph, Member, Message, Params, Peer, Plan, Request, Rounding, Server, Session,
    SigningKey, Stage,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

/// Measures whole rounds of secure aggregation in this process, one client after the other.
#[derive(Parser)]
struct Options {
    /// Sizes of cohorts.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    clients: Vec<usize>,
    /// Values of an update. 55,000 are about the biases of a ViT-S, 150,000 those of a ViT-B.
    #[arg(long, value_delimiter = ',', default_value = "55000,150000")]
    values: Vec<u32>,
    /// Shares of clients that go after they have shared their secrets, which is where it costs the server most.
    #[arg(long, value_delimiter = ',', default_value = "0,0.1")]
    dropout: Vec<f64>,
    /// Only the sparse graph.
    #[arg(long)]
    sparse: bool,
    /// Share of clients that may collude with the server.
    #[arg(long, default_value_t = 0.1)]
    corrupt: f64,
    /// Integers for the largest value, as a power of two.
    #[arg(long, default_value_t = 16)]
    precision: u8,
    /// Largest weight of an update.
    #[arg(long, default_value_t = 1)]
    max_weight: u32,
}

/// Time that this thread has had a processor: what others do on the machine is not in it.
fn processor() -> Duration {
    // Linux brings its count up to date when a thread yields.
    thread::yield_now();
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(counts.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0))
}

/// What one round cost.
#[derive(Default)]
struct Cost {
    /// Of all clients, by stage.
    client: [Duration; Stage::ALL.len()],
    server: Duration,
    up: usize,
    down: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    println!("times are of one processor, not of the clock; fp32 is an update that nobody protects\n");
    println!(
        "| clients | values | graph | dropout | bits | client up KiB | of fp32 | client down KiB | client ms \
         (advertise share mask confirm unmask) | server s |"
    );
    println!("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |");
    for clients in &options.clients {
        for values in &options.values {
            // A plan for more than what happens here, so that no round of this measurement is lost.
            let mut plans = vec![
                Plan::complete(*clients, 0.2, options.corrupt)?,
                Plan::sparse(*clients, 0.2, options.corrupt)?,
            ];
            plans.dedup();
            for plan in plans.iter().filter(|plan| !options.sparse || plan.graph != Graph::Complete) {
                for dropout in &options.dropout {
                    measure(&options, *clients, *values, *plan, *dropout)?;
                }
            }
        }
    }
    Ok(())
}

fn measure(
    options: &Options,
    size: usize,
    values: u32,
    plan: Plan,
    dropout: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let identity = |member: usize| {
        let mut seed = [1; 32];
        seed[..8].copy_from_slice(&(member as u64).to_le_bytes());
        SigningKey::from_bytes(&seed)
    };
    let name = |member: usize| format!("client-{member:06}");
    let peer = |member| Peer { client: name(member), identity: identity(member).verifying_key().to_bytes() };
    let encoding = Encoding::fit(size, 1.0, options.precision, options.max_weight, 0)?;
    let params = Params::new("overhead", 1, (0..size).map(peer).collect(), plan, values, encoding);
    // What every client gets first; names of clients are of 13 bytes here.
    let agreed = params.encode()?.len();
    let session = Session::new(params)?;
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut cost = Cost::default();
    let mut server = Server::new(session.clone());
    let mut clients = Vec::with_capacity(size);
    let update: Vec<f32> = (0..values).map(|at| (at as f32).sin()).collect();
    let mut expected = vec![0i64; session.words()];
    let leaves = size - (size as f64 * dropout) as usize;
    while let Some(stage) = server.stage() {
        for member in 0..size {
            if !server.asked(stage).contains(member as Member) || (member >= leaves && stage >= Stage::Mask) {
                continue;
            }
            let start = processor();
            let request = server.request(member as Member)?.map(|request| request.encode()).transpose()?;
            cost.server += processor().saturating_sub(start);
            // The encoding and the masks of an update are both part of the stage.
            let (start, mut excluded) = (processor(), Duration::ZERO);
            let answer = if let Some(request) = &request {
                cost.down += request.len();
                let client: &mut Client = &mut clients[member];
                let request = Request::decode(request, &session)?;
                match request.ask {
                    Ask::Share { .. } => client.share(&request, &mut rng)?.encode()?,
                    Ask::Mask { .. } => {
                        let encoded = encoding.encode(&update, 1, Rounding::Stochastic(&mut rng), None)?;
                        let (paused, integers) = (processor(), encoded.integers());
                        expected.iter_mut().zip(integers).for_each(|(sum, integer)| *sum += integer);
                        excluded = processor().saturating_sub(paused);
                        client.mask(&request, encoded)?.message().encode()?
                    }
                    Ask::Confirm { .. } => client.confirm(&request)?.encode()?,
                    Ask::Unmask { .. } => client.unmask(&request)?.encode()?,
                }
            } else {
                cost.down += agreed;
                let client = Client::new(session.clone(), &name(member), identity(member), &mut rng)?;
                let message = client.advertise().encode()?;
                clients.push(client);
                message
            };
            cost.client[stage as usize] += processor().saturating_sub(start + excluded);
            cost.up += answer.len();
            let start = processor();
            server.take(&Message::decode(&answer, &session)?)?;
            cost.server += processor().saturating_sub(start);
        }
        server.close()?;
    }
    let start = processor();
    let sum = server.sum(NonZero::<usize>::MIN)?;
    cost.server += processor().saturating_sub(start);
    if !sum.integers().eq(expected) {
        return Err("the sum is wrong".into());
    }
    row(&session, dropout, leaves, &cost);
    Ok(())
}

fn row(session: &Session, dropout: f64, stayed: usize, cost: &Cost) {
    let params = session.params();
    let graph = match params.graph {
        Graph::Complete => format!("complete, t = {}", params.threshold),
        Graph::Sparse { degree } => format!("k = {degree}, t = {}", params.threshold),
    };
    let size = session.size();
    // Of those who stay, whose share is more than the mean of all.
    let kib = |bytes: usize| bytes as f64 / stayed as f64 / 1024.0;
    let fp32 = f64::from(params.values) * 4.0 / 1024.0;
    let asked = [size, size, stayed, stayed, stayed];
    let times: Vec<f64> = cost
        .client
        .iter()
        .zip(asked)
        .map(|(time, clients)| time.as_secs_f64() * 1e3 / clients as f64)
        .collect();
    let stages: Vec<_> = times.iter().map(|time| format!("{time:.1}")).collect();
    println!(
        "| {size} | {} | {graph} | {:.0} % | {} | {:.1} | {:.2} | {:.1} | {:.1} ({}) | {:.2} |",
        params.values,
        dropout * 100.0,
        params.encoding.bits,
        kib(cost.up),
        kib(cost.up) / fp32,
        kib(cost.down),
        times.iter().sum::<f64>(),
        stages.join(" "),
        cost.server.as_secs_f64(),
    );
}
