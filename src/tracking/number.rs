//! Numbers as the text W&B's clients send.

/// Whole numbers without a fraction, others as short as they can be read back, and what JSON has no word for as the bare
/// words `NaN`, `Infinity` and `-Infinity`: that a loss diverged is the one thing nobody wants to lose.
pub fn token(value: f64) -> String {
    /// From here on an `f64` no longer holds every whole number.
    const WHOLE: f64 = 9_007_199_254_740_992.0;
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else if value.fract() == 0.0 && value.abs() < WHOLE {
        (value as i64).to_string()
    } else {
        serde_json::Value::from(value).to_string()
    }
}

/// Seconds, to the millisecond.
pub fn seconds(value: f64) -> String {
    format!("{value:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_text() {
        let values = [
            2.0,
            -0.0,
            0.1,
            1e-300,
            -1.5e300,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            9_007_199_254_740_991.0,
        ];
        let expected = [
            "2",
            "0",
            "0.1",
            "1e-300",
            "-1.5e+300",
            "NaN",
            "Infinity",
            "-Infinity",
            "9007199254740991",
        ];
        assert_eq!(values.map(token), expected);
    }
}
