//! What a script prints, line by line.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A pipe read line by line without waiting.
pub(super) struct Lines {
    /// `None` once it is closed.
    pub(super) pipe: Option<OwnedFd>,
    partial: Vec<u8>,
}

impl Lines {
    pub(super) fn new(pipe: Option<OwnedFd>) -> Self {
        Self {
            pipe,
            partial: Vec::new(),
        }
    }

    /// Takes what is there now; at the end also an unfinished line.
    pub(super) fn take(&mut self, end: bool, mut line: impl FnMut(&str)) {
        let mut buffer = [0; 16 * 1024];
        while let Some(pipe) = &self.pipe {
            let mut watched = [PollFd::new(pipe, PollFlags::IN)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if !matches!(poll(&mut watched, Some(&now)), Ok(1..)) {
                break;
            }
            let Ok(file) = pipe.as_fd().try_clone_to_owned() else {
                break;
            };
            match std::fs::File::from(file).read(&mut buffer) {
                Ok(0) | Err(_) => self.pipe = None,
                Ok(count) => self.partial.extend_from_slice(&buffer[..count]),
            }
            while let Some(length) = self.partial.iter().position(|&byte| byte == b'\n') {
                let text: Vec<u8> = self.partial.drain(..=length).collect();
                line(String::from_utf8_lossy(&text[..length]).trim_end_matches('\r'));
            }
        }
        if end && !self.partial.is_empty() {
            line(&String::from_utf8_lossy(&std::mem::take(&mut self.partial)));
        }
    }
}
