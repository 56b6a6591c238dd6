//! What another region tells has moved there.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::id::OrgId;
use proto::wire::replication::{Answer, Ask, Moved, Position};

use super::connection::Connection;
use super::{Broken, Replication};

/// How long a region may wait until it says that there is nothing new.
const NEWS_WAIT: Duration = Duration::from_secs(1);

/// When news were asked for that were then answered.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub at: Timestamp,
    pub since: Instant,
}

/// What a region has told.
pub(super) struct News {
    pub asked: Asked,
    pub moved: Vec<Moved>,
    pub gone: Vec<OrgId>,
}

impl Replication {
    /// Tells a region what was stored of it, and hears what has moved.
    pub(super) async fn news(
        &self,
        connection: &Connection,
        applied: Vec<(OrgId, Position)>,
    ) -> Result<News, Broken> {
        let ask = Ask::News {
            wait_ms: NEWS_WAIT.as_millis() as u32,
            applied,
        };
        let asked = Asked {
            at: Timestamp::now(),
            since: Instant::now(),
        };
        let news = connection.ask(&ask, NEWS_WAIT).await?;
        let Answer::News { whole, moved, gone } = news else {
            return Err(Broken::Protocol);
        };
        let peer = connection.peer();
        let gone = self.departed(peer, (whole, &moved, gone)).await?;
        self.measure(peer, &moved).await?;
        Ok(News { asked, moved, gone })
    }
}
