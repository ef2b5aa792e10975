//! Why something was not sent, and what follows from it.

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody is there.
    #[error("{0}")]
    Unreachable(String),
    /// The server asks for patience, or its answer was lost; what was sent may have arrived all the same.
    #[error("{message}")]
    Busy {
        message: String,
        /// `Retry-After`.
        after: Option<Duration>,
    },
    /// The request is larger than the server takes (413).
    #[error("{0}")]
    TooLarge(String),
    /// The server's last word.
    #[error("{0}")]
    Refused(String),
    /// The journal cannot be read or written.
    #[error("the tracking journal: {0}")]
    Journal(#[from] std::io::Error),
    #[error("the tracking journal holds something else than it should: {0}")]
    Damaged(#[from] serde_json::Error),
}

impl Failure {
    /// Whether the same may work later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Busy { .. })
    }
}

/// Which answers are the server's last word; the lists are those of W&B's own client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Stream,
    Graphql,
    /// A mutation that may collide with itself: 409 passes.
    Upsert,
    Upload,
}

impl Call {
    pub fn is_final(self, status: u16) -> bool {
        match self {
            Self::Upload => !(status == 429 || status >= 500 && status != 501),
            Self::Upsert if status == 409 => false,
            _ => {
                (300..400).contains(&status)
                    || matches!(status, 400 | 401 | 403 | 404 | 409 | 410 | 413 | 422 | 501)
            }
        }
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
pub fn retry_after(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// Waits between attempts: 2 s doubling to 60 s, and up to a quarter more so that many runs do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// `share`: between 0 and 1, where in the quarter to land.
    pub fn next(&mut self, share: f64) -> Duration {
        let wait = self
            .first
            .saturating_mul(2_u32.saturating_pow(self.failures))
            .min(self.most);
        self.failures += 1;
        wait.mul_f64(1.0 + share / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
        let mut next = || backoff.next(0.0).as_secs();
        assert_eq!(
            [next(), next(), next(), next(), next(), next(), next()],
            [2, 4, 8, 16, 32, 60, 60]
        );
        backoff.failures = 1000;
        assert_eq!(backoff.next(1.0), Duration::from_secs(75));
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(2500));
    }

    #[test]
    fn retry_after_in_seconds_or_as_a_date() {
        let now = "2026-11-24T08:00:00Z".parse().unwrap();
        let seconds = |text: &str| retry_after(text, now).map(|wait| wait.as_secs_f64());
        assert_eq!(seconds("3"), Some(3.0));
        assert_eq!(seconds(" 0.5 "), Some(0.5));
        assert_eq!(seconds("Tue, 24 Nov 2026 08:00:30 GMT"), Some(30.0));
        assert_eq!(seconds("Tue, 24 Nov 2026 07:00:00 GMT"), Some(0.0));
        assert_eq!(seconds("-1"), None);
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn last_words() {
        assert!(
            [400, 401, 403, 404, 409, 413, 501, 302]
                .iter()
                .all(|status| Call::Stream.is_final(*status))
        );
        assert!(
            [408, 429, 500, 502, 503]
                .iter()
                .all(|status| !Call::Stream.is_final(*status))
        );
        assert!(!Call::Upsert.is_final(409));
        assert!(Call::Upsert.is_final(401));
        assert!(Call::Upload.is_final(404) && !Call::Upload.is_final(429));
    }
}
