//! Numbers as people read them.

/// `850 ms`, `12.3 s`, `4 m 05 s`, `2 h 10 m`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{} m {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} m", whole / 3600, whole % 3600 / 60)
    }
}

/// `1.4 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `16,407`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `16,407 rows`.
pub fn plural(number: u64, noun: &str) -> String {
    format!(
        "{} {noun}{}",
        count(number),
        if number == 1 { "" } else { "s" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let shown: Vec<_> = [0.0, 0.85, 0.9999, 12.34, 59.97, 245.0, 7800.0]
            .into_iter()
            .map(seconds)
            .collect();
        assert_eq!(
            shown,
            [
                "0 ms", "850 ms", "1.0 s", "12.3 s", "1 m 00 s", "4 m 05 s", "2 h 10 m"
            ]
        );
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(
            [
                bytes(0),
                bytes(1023),
                bytes(1_048_576),
                bytes(1_503_238_553)
            ],
            ["0 B", "1023 B", "1.0 MiB", "1.4 GiB"]
        );
        assert_eq!(
            [count(0), count(999), count(16_407), count(1_234_567)],
            ["0", "999", "16,407", "1,234,567"]
        );
    }
}
