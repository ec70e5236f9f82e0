//! Carrying faults out.

use std::{fs, time::Duration};

use tokio::time::sleep;

use crate::{
    processes::Process,
    schedule::{Fault, Target},
    world::World,
};

/// Strikes, and returns when the fault itself is over, with a word on what it hit.
pub async fn inject(world: &World, fault: Fault) -> String {
    match fault {
        Fault::Kill(target) => {
            let process = world.target(target);
            process.kill();
            process.name.clone()
        }
        Fault::Replace(worker) => {
            let process = world.target(Target::Worker(worker));
            process.kill();
            // Another process with the same clients, on a machine that has nothing yet.
            let _ = fs::remove_dir_all(&process.cache);
            process.name.clone()
        }
        Fault::KillBroker { down } => {
            world.broker.lock().await.crash(down).await;
            seconds("down for", down)
        }
        Fault::Pause { target, pause } => {
            let process = world.target(target);
            process.pause(pause).await;
            on(process, "for", pause)
        }
        Fault::PauseBroker { pause } => {
            world.broker.lock().await.pause(pause).await;
            seconds("for", pause)
        }
        Fault::Cut(target) => {
            let process = world.target(target);
            process.proxy.cut();
            process.name.clone()
        }
        Fault::CutAfter { target, way, bytes } => {
            let process = world.target(target);
            process.proxy.cut_after(way, bytes);
            format!("{} after {bytes} bytes {way:?}", process.name)
        }
        Fault::Refuse { target, pause } => {
            let process = world.target(target);
            process.proxy.refuse();
            sleep(pause).await;
            process.proxy.admit();
            on(process, "for", pause)
        }
        Fault::Silence { target, pause } => {
            let process = world.target(target);
            process.proxy.silence();
            sleep(pause).await;
            process.proxy.speak();
            on(process, "for", pause)
        }
        Fault::CutEverybody => {
            world.processes.iter().for_each(|process| process.proxy.cut());
            format!("{} processes", world.processes.len())
        }
        Fault::Replay { messages, seed } => {
            format!("{} messages", world.tap.replay(messages, seed).await)
        }
        Fault::FullDisk { full } => {
            let mut broker = world.broker.lock().await;
            broker.fill().await;
            sleep(full).await;
            broker.relieve().await;
            seconds("for", full)
        }
        Fault::Clock { target, seconds } => {
            let process = world.target(target);
            process.clock.set(seconds);
            format!("{} by {seconds:+} s", process.name)
        }
    }
}

fn on(process: &Process, word: &str, duration: Duration) -> String {
    format!("{} {}", process.name, seconds(word, duration))
}

fn seconds(word: &str, duration: Duration) -> String {
    format!("{word} {:.1} s", duration.as_secs_f64())
}
