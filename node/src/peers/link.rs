//! One connection between two nodes: what it carries once both are known.

use std::time::Duration;

use proto::boot_instant::BootInstant;
use proto::wire;
use proto::wire::link::read_frame;
use tokio::io::{AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::Peers;
use super::greet::{Spoken, Stream};
use super::wire::{CLOCK_PROTOCOL, FRAME_BYTES_MAX, PeerMessage};
use crate::limits::{Clock, Opener};

/// Messages that wait for a peer; a further one is dropped and counted. A peer that takes so few
/// is asked nothing more until it does.
pub const QUEUE: usize = 1_024;
/// A link is never silent for longer than this; so often the peer's wall clock is asked for.
const BEAT: Duration = Duration::from_secs(1);
/// A peer that says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// Bytes that are put together for one write.
const WRITE_BYTES: usize = 64 * 1_024;

/// Carries messages both ways until the stream ends, the queue is closed, or the peer is silent.
///
/// # Errors
/// Why it ended, where it was not the queue.
pub async fn carry(
    stream: Stream,
    outgoing: mpsc::Receiver<PeerMessage>,
    peers: &Peers,
    spoken: Spoken,
) -> std::io::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        ended = read(reader, peers, spoken.peer) => ended,
        ended = write(writer, outgoing, &*peers.shared.clock, spoken.protocol) => ended,
    }
}

async fn read(reader: ReadHalf<Stream>, peers: &Peers, peer: Opener) -> std::io::Result<()> {
    let mut reader = BufReader::new(reader);
    loop {
        let asked = BootInstant::now();
        let frame = read_frame(&mut reader, FRAME_BYTES_MAX);
        let Some(frame) = tokio::time::timeout(SILENCE_MAX, frame).await?? else {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        // The machine slept, or the process was stopped: what has waited here tells ages of then.
        if asked.elapsed() > SILENCE_MAX {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        // A peer that is told nothing more asks another one at once.
        if !peers
            .take(peer, wire::decode(&frame).map_err(invalid)?)
            .await
        {
            return Ok(());
        }
    }
}

async fn write(
    mut writer: WriteHalf<Stream>,
    mut outgoing: mpsc::Receiver<PeerMessage>,
    clock: &dyn Clock,
    protocol: u16,
) -> std::io::Result<()> {
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut next = tokio::select! {
            message = outgoing.recv() => match message {
                Some(message) => Some(message),
                None => return Ok(()),
            },
            _ = beats.tick() => Some(match protocol >= CLOCK_PROTOCOL {
                true => PeerMessage::AskTime { asked_ns: clock.boot_ns() },
                false => PeerMessage::Beat,
            }),
        };
        let mut bytes = Vec::new();
        while let Some(message) = next {
            bytes.extend(wire::encode(&message).map_err(invalid)?);
            next = match bytes.len() < WRITE_BYTES {
                true => outgoing.try_recv().ok(),
                false => None,
            };
        }
        tokio::time::timeout(SILENCE_MAX, writer.write_all(&bytes)).await??;
        tokio::time::timeout(SILENCE_MAX, writer.flush()).await??;
    }
}

fn invalid(error: wire::WireError) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
}
