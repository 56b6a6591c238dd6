//! Ships batches to a control plane, and keeps them on disk while none takes them.
//!
//! While all is well a batch goes from memory straight to a control plane and is never on disk. A
//! batch that was not acknowledged goes to the [`Spool`], and so does every later one until the
//! spool is empty again, so that the order stays. One batch is under way at a time; the queue is
//! emptied to disk as soon as that takes long, since it is small.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proto::wire::RecordBatch;
use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

pub use super::link::Destination;
use super::link::Link;
use super::losses::Losses;
use super::spool::{Place, Spool};
use super::{Batch, RecordBatches, Room};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::stages::record::Origin;

/// How often an idle node shows that it is there.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// First and longest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a disk that took nothing is left alone: each try costs a batch.
const DISK_REST: Duration = Duration::from_secs(60);
/// A batch that is under way longer does not hold up those behind it.
const SLOW: Duration = Duration::from_millis(50);
/// Times that the oldest segment is tried to be read before it is given up.
const READS_MAX: u32 = 12;
/// How long a process that ends still ships; what is left stays on disk.
const ENDING: Duration = Duration::from_secs(1);

/// Ships until the queue has ended and everything is stored or on disk. Until the spool comes, and
/// where none does, records wait in memory. `clocks` hear what those of control planes show.
pub async fn run(
    mut batches: RecordBatches,
    mut spool: oneshot::Receiver<Spool>,
    destination: Destination,
    origin: Arc<Origin>,
    metrics: Metrics,
    clocks: Option<Arc<Limits>>,
) {
    let link = Link::new(destination, Arc::clone(&origin), clocks);
    let mut shipper = Shipper::new(&origin, link, metrics);
    let mut under_way: Option<UnderWay> = None;
    let (mut leave_by, mut awaits_spool) = (None, true);
    loop {
        let now = Instant::now();
        if under_way.is_none() {
            under_way = shipper.due(now).await;
        }
        if leave_by.is_some_and(|at| under_way.is_none() || now >= at) {
            break;
        }
        let slow_at = under_way.as_ref().map(|batch| batch.began + SLOW);
        // Without a disk the queue is where records wait.
        let waits = match shipper.has_disk(now) {
            true => slow_at.is_some_and(|at| now < at),
            false => under_way.is_some() || !shipper.is_well(now),
        };
        let takes = !waits || batches.is_half_full();
        let wake = [slow_at.filter(|at| *at > now), leave_by, shipper.wakes()];
        let wake = wake.into_iter().flatten().min().unwrap_or(now + HEARTBEAT);
        tokio::select! {
            (link, result) = ended(&mut under_way) => {
                if let Some(batch) = under_way.take() {
                    shipper.settle(link, batch, result).await;
                }
            }
            batch = batches.next(), if takes && leave_by.is_none() => match batch {
                Some((batch, room)) => match under_way.is_none() && shipper.is_well(now) {
                    true => under_way = shipper.start(batch, Source::Memory(room)),
                    false => shipper.keep(batch, room).await,
                },
                None => leave_by = Some(now + ENDING),
            },
            opened = &mut spool, if awaits_spool => {
                awaits_spool = false;
                shipper.opened(opened.ok());
            }
            () = tokio::time::sleep_until(wake.max(now)) => {}
        }
    }
    if let Some(UnderWay {
        batch,
        from: Source::Memory(room),
        ..
    }) = under_way
    {
        shipper.keep(batch.records.clone(), room).await;
    }
}

type Sending = Pin<Box<dyn Future<Output = (Link, std::io::Result<()>)> + Send>>;

/// A batch that is being sent.
struct UnderWay {
    batch: Arc<RecordBatch>,
    from: Source,
    began: Instant,
    sending: Sending,
}

/// Where the records of a batch are until it is acknowledged.
enum Source {
    /// In memory alone, where they take room.
    Memory(Room),
    /// In the spool.
    Disk(Place),
    /// There are none: it says that the node is there.
    Heartbeat,
}

async fn ended(under_way: &mut Option<UnderWay>) -> (Link, std::io::Result<()>) {
    match under_way {
        Some(batch) => batch.sending.as_mut().await,
        None => std::future::pending().await,
    }
}

struct Shipper {
    node: String,
    /// Away while a batch is under way.
    link: Option<Link>,
    /// Absent where there is no disk for it, or a disk operation panicked.
    spool: Option<Spool>,
    metrics: Metrics,
    /// Lost records that control knows of.
    reported: u64,
    sequence: u64,
    /// The next wait; the first one while all is well.
    backoff: Duration,
    retry_at: Instant,
    contact: Instant,
    /// Until when records wait in memory alone, since the disk took nothing. It is tried before
    /// where that fills up. That a control plane takes records says nothing of the disk.
    disk_rests: Option<Instant>,
    /// What the disk did not take.
    losses: Losses,
    /// How often the oldest segment could not be read.
    unread: u32,
}

impl Shipper {
    fn new(origin: &Origin, link: Link, metrics: Metrics) -> Self {
        Self {
            node: origin.node.to_string(),
            link: Some(link),
            spool: None,
            metrics,
            reported: 0,
            sequence: 0,
            backoff: BACKOFF_MIN,
            retry_at: Instant::now(),
            contact: Instant::now(),
            disk_rests: None,
            losses: Losses::default(),
            unread: 0,
        }
    }

    fn opened(&mut self, spool: Option<Spool>) {
        if let Some(spool) = spool.as_ref().filter(|spool| !spool.is_empty()) {
            info!("{} records wait on disk from before", spool.records());
        }
        self.spool = spool;
    }

    fn has_disk(&self, now: Instant) -> bool {
        self.spool.is_some() && self.disk_rests.is_none_or(|until| now >= until)
    }

    /// Whether a batch may go straight to control.
    fn is_well(&self, now: Instant) -> bool {
        now >= self.retry_at && self.spool.as_ref().is_none_or(Spool::is_empty)
    }

    /// When there is something to do by itself.
    fn wakes(&self) -> Option<Instant> {
        self.link.as_ref()?;
        let waits = self.spool.as_ref().is_some_and(|spool| !spool.is_empty());
        let beat = self.contact + HEARTBEAT;
        Some(if waits {
            self.retry_at
        } else {
            beat.max(self.retry_at)
        })
    }

    /// The batch that is to be sent now: the oldest of the spool, or an empty one after a silence.
    async fn due(&mut self, now: Instant) -> Option<UnderWay> {
        if now < self.retry_at {
            return None;
        }
        if self.spool.as_ref().is_none_or(Spool::is_empty) {
            let silent = now >= self.contact + HEARTBEAT;
            return silent
                .then(|| self.start(Vec::new(), Source::Heartbeat))
                .flatten();
        }
        let oldest = self.on_disk(|spool| spool.oldest()).await?;
        match oldest {
            Ok(oldest) => {
                self.unread = 0;
                let oldest = oldest?;
                let place = oldest.place();
                self.start(oldest.records, Source::Disk(place))
            }
            Err(problem)
                if problem.kind() != std::io::ErrorKind::InvalidData && self.unread < READS_MAX =>
            {
                warn!("records on disk cannot be read now: {problem}");
                self.unread += 1;
                self.retry_at = now + BACKOFF_MAX;
                None
            }
            Err(problem) => {
                self.unread = 0;
                let lost = self.on_disk(Spool::skip).await.unwrap_or(0);
                error!("{lost} records on disk cannot be read and are lost: {problem}");
                self.metrics.records_dropped(lost);
                None
            }
        }
    }

    fn start(&mut self, records: Batch, from: Source) -> Option<UnderWay> {
        let mut link = self.link.take()?;
        self.sequence += 1;
        let dropped = self.metrics.records_dropped_so_far();
        let batch = Arc::new(RecordBatch {
            node: self.node.clone(),
            sequence: self.sequence,
            dropped: dropped.saturating_sub(self.reported),
            records,
        });
        let sent = Arc::clone(&batch);
        let sending = Box::pin(async move {
            let result = link.send(&sent).await;
            (link, result)
        });
        Some(UnderWay {
            batch,
            from,
            began: Instant::now(),
            sending,
        })
    }

    async fn settle(&mut self, link: Link, under_way: UnderWay, result: std::io::Result<()>) {
        self.link = Some(link);
        self.contact = Instant::now();
        let UnderWay { batch, from, .. } = under_way;
        let count = batch.records.len() as u64;
        match result {
            Ok(()) => {
                self.backoff = BACKOFF_MIN;
                self.retry_at = self.contact;
                self.reported = self.reported.saturating_add(batch.dropped);
                if let Source::Disk(place) = from {
                    self.on_disk(move |spool| spool.pass(place, count)).await;
                }
            }
            Err(problem) => {
                if self.backoff == BACKOFF_MIN {
                    warn!("no control plane takes records, they wait on disk: {problem}");
                }
                // Full jitter: many nodes lose one control plane at the same time.
                let wait = rand::rng().random_range(Duration::ZERO..=self.backoff);
                self.retry_at = self.contact + wait;
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                match from {
                    Source::Disk(place) => {
                        self.on_disk(move |spool| spool.not_taken(place)).await;
                    }
                    Source::Memory(room) => self.keep(batch.records.clone(), room).await,
                    Source::Heartbeat => {}
                }
            }
        }
    }

    /// Puts records on disk; what finds no place there is lost and counted, the oldest first. Then
    /// they take no room in memory anymore.
    async fn keep(&mut self, records: Batch, _room: Room) {
        let count = records.len() as u64;
        let Some(kept) = self.on_disk(move |spool| spool.keep(records)).await else {
            self.metrics.records_dropped(count);
            return;
        };
        self.metrics.records_dropped(kept.lost);
        self.disk_rests = kept.refused.then(|| Instant::now() + DISK_REST);
        if let Some(problem) = kept.problem
            && let Some(lost) = self.losses.note(kept.lost, Instant::now().into_std())
        {
            error!("{lost} records cannot be kept on disk and are lost: {problem}");
        }
    }

    /// Runs a disk operation where it holds up nobody.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        run: impl FnOnce(&mut Spool) -> T + Send + 'static,
    ) -> Option<T> {
        let mut spool = self.spool.take()?;
        let done = tokio::task::spawn_blocking(move || {
            let result = run(&mut spool);
            (spool, result)
        });
        let (spool, result) = done.await.ok()?;
        self.metrics.records_spooled(spool.records());
        self.spool = Some(spool);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use proto::wire;
    use proto::wire::link::{Ack, GREETING_BYTES_MAX, Welcome, read_frame, write_frame};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::records::queue;
    use crate::records::tests::record;

    fn destination(endpoints: Vec<String>, roots: rustls::RootCertStore) -> Destination {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Destination {
            endpoints,
            tls: Arc::new(tls),
        }
    }

    fn origin() -> Arc<Origin> {
        Arc::new(Origin {
            node: "n".into(),
            region: "local".into(),
        })
    }

    fn batch() -> Batch {
        vec![Arc::new(record(1))]
    }

    /// One that was given out.
    async fn given() -> (Batch, Room) {
        let (sender, mut batches) = queue();
        assert!(sender.send(batch()));
        batches.next().await.unwrap()
    }

    /// A folder where the first segment belongs: the disk takes nothing until that is gone.
    fn taken(dir: &Path) -> std::path::PathBuf {
        let taken = dir.join(format!("{:020}.spool", 0));
        std::fs::create_dir(&taken).unwrap();
        taken
    }

    /// A control plane that takes everything and is slow to say so.
    struct SlowControl {
        destination: Destination,
        taken: Arc<AtomicU64>,
    }

    impl SlowControl {
        async fn start() -> Self {
            let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            let certificate = made.cert.der().clone();
            let key = made.signing_key.serialize_der();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], key.try_into().unwrap())
                .unwrap();
            let mut roots = rustls::RootCertStore::empty();
            roots.add(certificate).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = listener.local_addr().unwrap().to_string();
            let taken = Arc::<AtomicU64>::default();
            let (counter, acceptor) = (taken.clone(), TlsAcceptor::from(Arc::new(config)));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(Self::take(acceptor.clone(), stream, counter.clone()));
                }
            });
            Self {
                destination: destination(vec![endpoint], roots),
                taken,
            }
        }

        async fn take(acceptor: TlsAcceptor, stream: TcpStream, taken: Arc<AtomicU64>) {
            let mut stream = acceptor.accept(stream).await.unwrap();
            read_frame(&mut stream, GREETING_BYTES_MAX).await.unwrap();
            let welcome = Welcome {
                protocol: 1,
                refused: None,
            };
            write_frame(&mut stream, &welcome).await.unwrap();
            while let Ok(Some(frame)) = read_frame(&mut stream, 1 << 20).await {
                let batch: RecordBatch = wire::decode(&frame).unwrap();
                taken.fetch_add(batch.records.len() as u64, SeqCst);
                // What is behind this batch goes to the disk meanwhile, if anything does.
                tokio::time::sleep(SLOW * 3).await;
                let sequence = batch.sequence;
                if write_frame(&mut stream, &Ack { sequence }).await.is_err() {
                    break;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_disk_that_took_nothing_counts_again_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let link = Link::new(
            destination(Vec::new(), rustls::RootCertStore::empty()),
            origin(),
            None,
        );
        let mut shipper = Shipper::new(&origin(), link, Metrics::default());
        shipper.opened(Spool::open(dir.path(), 1 << 20).ok());
        assert!(shipper.has_disk(Instant::now()));
        let taken = taken(dir.path());
        let (records, room) = given().await;
        shipper.keep(records, room).await;
        assert!(!shipper.has_disk(Instant::now()));
        let (records, room) = given().await;
        let under_way = shipper.start(records, Source::Memory(room)).unwrap();
        let (link, _) = under_way.sending.await;
        let sent = UnderWay {
            sending: Box::pin(std::future::pending()),
            ..under_way
        };
        shipper.settle(link, sent, Ok(())).await;
        assert!(!shipper.has_disk(Instant::now()));
        assert!(shipper.has_disk(Instant::now() + DISK_REST));
        // It takes what it is given before, since memory fills up.
        std::fs::remove_dir(taken).unwrap();
        let (records, room) = given().await;
        shipper.keep(records, room).await;
        assert!(shipper.has_disk(Instant::now()));
    }

    #[tokio::test]
    async fn what_a_slow_control_plane_takes_waits_in_memory_while_the_disk_takes_nothing() {
        const BATCHES: u64 = 8;
        let dir = tempfile::tempdir().unwrap();
        let control = SlowControl::start().await;
        let kept = Spool::open(dir.path(), 1 << 20).unwrap();
        taken(dir.path());
        let (opened, spool) = oneshot::channel();
        assert!(opened.send(kept).is_ok());
        let (sender, batches) = queue();
        let metrics = Metrics::default();
        let shipping = tokio::spawn(run(
            batches,
            spool,
            control.destination,
            origin(),
            metrics.clone(),
            None,
        ));
        let (taken, lost) = (control.taken, || metrics.records_dropped_so_far());
        for sent in 1..=BATCHES {
            assert!(sender.send(batch()));
            let settled = async {
                while taken.load(SeqCst) + lost() < sent {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let settled = tokio::time::timeout(Duration::from_secs(60), settled).await;
            assert!(
                settled.is_ok(),
                "{} taken, {} lost",
                taken.load(SeqCst),
                lost()
            );
        }
        // The one that showed what the disk does.
        assert!(lost() <= 1, "{}", lost());
        assert_eq!(taken.load(SeqCst) + lost(), BATCHES);
        drop(sender);
        shipping.await.unwrap();
    }
}
