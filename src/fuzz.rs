//! Damage to valid input, for the tests `survives_damage` beside everything that reads what others wrote.
//!
//! `make fuzz` gives each of them a million inputs; as part of the tests they get some hundred. `FUZZ_FIRST` goes on with a
//! later one.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

/// Inputs where `FUZZ_INPUTS` says nothing.
const INPUTS: u64 = 300;
/// What takes longer hangs, even on a busy machine.
const LONGEST: Duration = Duration::from_secs(30);
/// Inputs are a few kilobytes; whoever takes so much for one has believed a number in it.
const MOST_MEMORY: u64 = 3 << 30;

/// Numbers and texts at which readers break.
const NASTY: [&[u8]; 20] = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\0\0\0\0\0\0\0\x80",
    b"\xff\xff\xff\x7f",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"18446744073709551616",
    b"9223372036854775807",
    b"null",
    b"\"",
    b"{",
    b"[",
    b"&a *a",
    b"${HOME}",
    "\u{feff}".as_bytes(),
    "\u{1F600}".as_bytes(),
];

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Input number `index`: a seed with one to eight changes.
fn damaged(seeds: &[Vec<u8>], index: u64) -> Vec<u8> {
    let mut random = Random((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let pick = random.below(seeds.len());
    let mut bytes = seeds[pick].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at.min(end)..end)),
            4 => {
                let block = bytes[at.min(end)..end].to_vec();
                let most = if random.below(10) == 0 { 3_000 } else { 3 };
                let times = 1 + random.below(most);
                bytes.splice(at..at, block.repeat(times));
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let to = (from + random.below(64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            6 => {
                let nasty = NASTY[random.below(NASTY.len())];
                let to = (at + nasty.len()).min(bytes.len());
                bytes.splice(at..to, nasty.iter().copied());
            }
            7 => {
                let nasty = NASTY[random.below(NASTY.len())];
                bytes.splice(at..at, nasty.iter().copied());
            }
            _ => bytes.insert(at, b" \n\t:,-{}[]<>/\"'%#"[random.below(17)]),
        }
    }
    bytes
}

/// Calls `read` with damaged seeds; it must neither panic, nor hang, nor take memory by what the input claims.
#[track_caller]
pub fn survives(seeds: &[Vec<u8>], read: impl Fn(&[u8]) + Sync) {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| {
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is a number"))
        })
    };
    let (first, inputs) = (number("FUZZ_FIRST", 0), number("FUZZ_INPUTS", INPUTS));
    for seed in seeds {
        read(seed);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(first);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= inputs {
                return;
            }
            let bytes = damaged(seeds, index);
            let start = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
            let problem = match (ended, start.elapsed() > LONGEST) {
                (Ok(()), false) => continue,
                (Ok(()), true) => "hangs",
                (Err(_), _) => "panics",
            };
            let (_, kept) = file(&bytes).keep().expect("a temporary file can be kept");
            panic!("input {index} {problem}: {}", kept.display());
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        work();
        for other in others {
            other.join().expect("told above");
        }
    });
    let peak = peak_memory();
    assert!(peak < MOST_MEMORY, "{peak} bytes of memory were taken");
}

/// A file with these bytes.
pub fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(bytes).expect("it can be written");
    file
}

/// The most memory this process has had, in bytes (proc(5), `VmHWM`).
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    1024 * kilobytes
        .and_then(|number| number.parse::<u64>().ok())
        .expect("a number")
}
