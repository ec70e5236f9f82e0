//! What grows with the update: encoding it, putting masks on, and folding it. Throughput is in bytes of fp32 values; an update
//! under masks of a cohort of 16 has 16 of them.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedpeft_secagg::{
    Client, Encoded, Encoding, Member, Message, Params, Peer, Plan, Request, Rounding, Server, Session,
    SigningKey,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

const COHORT: usize = 16;
const VALUES: u32 = 55_000;

fn identity(member: usize) -> SigningKey {
    SigningKey::from_bytes(&[1 + member as u8; 32])
}

fn name(member: usize) -> String {
    format!("client-{member:02}")
}

fn session(precision: u8) -> Session {
    let peer = |member| Peer { client: name(member), identity: identity(member).verifying_key().to_bytes() };
    let encoding = Encoding::fit(COHORT, 1.0, precision, 1, 0).unwrap();
    let plan = Plan::complete(COHORT, 0.0, 0.0).unwrap();
    Session::new(Params::new("bench", 1, (0..COHORT).map(peer).collect(), plan, VALUES, encoding)).unwrap()
}

fn encode(session: &Session, update: &[f32]) -> Encoded {
    session.params().encoding.encode(update, 1, Rounding::Nearest, None).unwrap()
}

/// A server and its clients, up to the stage in which updates are masked.
fn shared(session: &Session) -> (Server, Vec<Client>) {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let enter = |member| Client::new(session.clone(), &name(member), identity(member), &mut rng).unwrap();
    let mut clients: Vec<_> = (0..COHORT).map(enter).collect();
    let mut server = Server::new(session.clone());
    clients.iter().for_each(|client| {
        server.take(&client.advertise()).unwrap();
    });
    server.close().unwrap();
    for (member, client) in clients.iter_mut().enumerate() {
        let request = server.request(member as Member).unwrap().unwrap();
        server.take(&client.share(&request, &mut rng).unwrap()).unwrap();
    }
    server.close().unwrap();
    (server, clients)
}

fn masks(criterion: &mut Criterion) {
    let update: Vec<f32> = (0..VALUES).map(|at| (at as f32).sin()).collect();
    let mut group = criterion.benchmark_group("masks");
    group.sample_size(20).throughput(Throughput::Bytes(u64::from(VALUES) * 4));
    // 21, 24, 32 and 40 bits.
    for precision in [16, 19, 27, 35] {
        let session = session(precision);
        let bits = session.params().encoding.bits;
        group.bench_function(BenchmarkId::new("encode", bits), |bench| {
            bench.iter(|| encode(&session, black_box(&update)));
        });
        group.bench_function(BenchmarkId::new("mask", bits), |bench| {
            let setup = || {
                let (server, mut clients) = shared(&session);
                (server.request(0).unwrap().unwrap(), clients.swap_remove(0), encode(&session, &update))
            };
            let run = |(request, mut client, encoded): (Request<'_>, Client, Encoded)| {
                client.mask(&request, encoded).unwrap()
            };
            bench.iter_batched(setup, run, BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("fold", bits), |bench| {
            let (server, mut clients) = shared(&session);
            let request = server.request(0).unwrap().unwrap();
            let masked =
                clients[0].mask(&request, encode(&session, &update)).unwrap().message().encode().unwrap();
            let setup = || shared(&session).0;
            let run = |mut server: Server| {
                server.take(&Message::decode(black_box(&masked), &session).unwrap()).unwrap();
                server
            };
            bench.iter_batched(setup, run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, masks);
criterion_main!(benches);
