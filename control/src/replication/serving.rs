//! The side of a connection that is asked: asks come in, answers go out.
//!
//! From protocol 11 on many asks are answered at one time, each in parts that take turns with those
//! of others. At most [`ASKS_MAX`] answers of a connection are in memory, each of the content that
//! one answer may have; further asks wait in the connection.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::wire;
use proto::wire::link::{Welcome, read_frame, write_frame};
use proto::wire::replication::{
    AnswerPart, Ask, NumberedAsk, PART_BYTES, PROTOCOL, PROTOCOL_NUMBERED, RegionHello,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::connection::{ANSWER_MAX, FRAME_BYTES_MAX, invalid};
use super::source::{Session, Source};
use super::turns::{HANDED_OVER_AT_ONCE, ORGS_AT_ONCE};

/// Longest silence of a follower.
const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(90);
/// Asks of one connection that are answered at one time. A follower has two of each organisation
/// that it takes, and a few of others.
const ASKS_MAX: usize = 2 * (ORGS_AT_ONCE + HANDED_OVER_AT_ONCE) + 8;

impl Source {
    /// Serves a region whose greeting came on `stream`; `named` tells whether the certificate that
    /// it proved names a host.
    ///
    /// # Errors
    /// The region may not ask, breaks the protocol, or has left.
    pub async fn attend(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
        greeting: &[u8],
        named: impl Fn(&str) -> bool,
    ) -> io::Result<()> {
        let hello: RegionHello = wire::decode(greeting).map_err(invalid)?;
        let refused = self.refuses(&hello, named);
        let welcome = Welcome {
            protocol: PROTOCOL,
            refused: refused.clone(),
        };
        tokio::time::timeout(ANSWER_MAX, write_frame(&mut stream, &welcome)).await??;
        if let Some(why) = refused {
            return Err(invalid(why));
        }
        let region = hello.region;
        info!(%peer, region, "region {region} follows");
        let _connected = self.status.connected(&region);
        let session = self.session(region.clone(), hello.protocol);
        match hello.protocol {
            PROTOCOL_NUMBERED.. => session.serve(stream).await?,
            _ => session.serve_in_turn(stream).await?,
        }
        info!(%peer, region, "region {region} has left");
        Ok(())
    }
}

/// An answer on its way.
struct Open {
    number: u64,
    frame: Vec<u8>,
    sent: usize,
    /// Told when all of it is written.
    done: oneshot::Sender<()>,
}

impl Session<'_> {
    /// Answers one ask after the other, as earlier programs expect it.
    async fn serve_in_turn(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> io::Result<()> {
        while let Some(frame) = read(&mut stream).await? {
            let ask: Ask = wire::decode(&frame).map_err(invalid)?;
            let answer = self.answer(ask).await.map_err(io::Error::other)?;
            tokio::time::timeout(ANSWER_MAX, write_frame(&mut stream, &answer)).await??;
        }
        Ok(())
    }

    /// Answers asks as they come, many at one time.
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (came, mut asks) = mpsc::channel(1);
        let (answered, mut answers) = mpsc::channel(ASKS_MAX);
        let reading = async move {
            while let Some(frame) = read(&mut reader).await? {
                let ask: NumberedAsk = wire::decode(&frame).map_err(invalid)?;
                if came.send(ask).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let answering = async {
            let mut running = FuturesUnordered::new();
            loop {
                tokio::select! {
                    ask = asks.recv(), if running.len() < ASKS_MAX => match ask {
                        Some(ask) => running.push(self.answer_numbered(ask, &answered)),
                        None => return Ok(()),
                    },
                    Some(done) = running.next(), if !running.is_empty() => done?,
                }
            }
        };
        tokio::select! {
            read = reading => read,
            answered = answering => answered,
            written = write(&mut writer, &mut answers) => written,
        }
    }

    /// Ends when the answer is written.
    async fn answer_numbered(
        &self,
        NumberedAsk { number, ask }: NumberedAsk,
        answered: &mpsc::Sender<Open>,
    ) -> io::Result<()> {
        let answer = self.answer(ask).await.map_err(io::Error::other)?;
        let frame = wire::encode(&answer).map_err(invalid)?;
        let (done, written) = oneshot::channel();
        let open = Open {
            number,
            frame,
            sent: 0,
            done,
        };
        let left = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        answered.send(open).await.map_err(|_| left(()))?;
        written.await.map_err(|_| left(()))
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    tokio::time::timeout(SILENCE_MAX, read_frame(stream, FRAME_BYTES_MAX)).await?
}

/// Writes answers, a part of each in turn.
async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    answers: &mut mpsc::Receiver<Open>,
) -> io::Result<()> {
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        if open.is_empty() {
            let Some(next) = answers.recv().await else {
                return Ok(());
            };
            open.push_back(next);
        }
        while let Ok(next) = answers.try_recv() {
            open.push_back(next);
        }
        let Some(mut answer) = open.pop_front() else {
            continue;
        };
        let rest = answer.frame.get(answer.sent..).unwrap_or_default();
        let bytes = rest.get(..PART_BYTES).unwrap_or(rest).to_vec();
        answer.sent = answer.sent.saturating_add(bytes.len());
        let part = AnswerPart {
            number: answer.number,
            last: answer.sent >= answer.frame.len(),
            bytes,
        };
        tokio::time::timeout(ANSWER_MAX, write_frame(writer, &part)).await??;
        match part.last {
            // Who waits for it has left with the connection, if at all.
            true => drop(answer.done.send(())),
            false => open.push_back(answer),
        }
    }
}
