//! What one call gets while it runs: slots on this machine, and on a cluster what its job asks the scheduler for.

use serde::{Deserialize, Serialize};

use super::diagnostic::{Diagnostic, Problems};
use super::fields::{self, Fields, expected};
use super::yaml::{Kind, Yaml};

/// What is asked for; `None` leaves it to the op here, and to the cluster's own defaults there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// CPU slots here, processors of a job there; `u32::MAX` (`all`) is all slots of this machine.
    pub cpus: Option<u32>,
    pub gpus: Option<u32>,
    /// Of a job, in MiB.
    pub memory: Option<u64>,
    /// Of a job, in minutes.
    pub time: Option<u32>,
    pub partition: Option<String>,
}

impl JobSpec {
    /// Takes the keys of a stage's `resources:`.
    pub fn read(fields: &mut Fields, problems: &mut Problems) -> Self {
        // `cpu` and `gpu` are what the keys were called before jobs had them too.
        let [cpus, gpus] = [["cpus", "cpu"], ["gpus", "gpu"]].map(|[name, older]| {
            let yaml = [fields.get(name), fields.get(older)].into_iter().flatten();
            yaml.filter_map(|yaml| slots(yaml, name, problems)).next()
        });
        Self {
            cpus,
            gpus,
            ..Self::read_limits(fields, problems)
        }
    }

    /// Takes the keys that have the same meaning for all jobs.
    pub fn read_limits(fields: &mut Fields, problems: &mut Problems) -> Self {
        Self {
            cpus: None,
            gpus: None,
            memory: fields.get("memory").and_then(|yaml| memory(yaml, problems)),
            time: fields.get("time").and_then(|yaml| time(yaml, problems)),
            partition: fields.text("partition", problems),
        }
    }

    /// What is given here, and from `other` what is not.
    pub fn or(&self, other: &Self) -> Self {
        Self {
            cpus: self
                .cpus
                .filter(|cpus| (1..=1024).contains(cpus))
                .or(other.cpus),
            gpus: self.gpus.filter(|&gpus| gpus <= 1024).or(other.gpus),
            memory: self.memory.or(other.memory),
            time: self.time.or(other.time),
            partition: self.partition.clone().or_else(|| other.partition.clone()),
        }
    }
}

fn slots(yaml: &Yaml, name: &str, problems: &mut Problems) -> Option<u32> {
    match &fields::read_env(yaml).kind {
        Kind::Text(text) if text == "all" => Some(u32::MAX),
        Kind::Number(number) if number.as_u64().is_some_and(|slots| slots <= 1024) => {
            number.as_u64().map(|slots| slots as u32)
        }
        _ => {
            problems.push(expected(
                yaml,
                name,
                "a number of slots from 0 to 1024, or `all`",
            ));
            None
        }
    }
}

/// A whole number from `least` to `most`.
pub fn count(
    yaml: &Yaml,
    name: &str,
    least: u32,
    most: u32,
    problems: &mut Problems,
) -> Option<u32> {
    match &fields::read_env(yaml).kind {
        Kind::Number(number)
            if number
                .as_u64()
                .is_some_and(|count| (least.into()..=most.into()).contains(&count)) =>
        {
            number.as_u64().map(|count| count as u32)
        }
        _ => {
            let what = format!("a whole number from {least} to {most}");
            problems.push(expected(yaml, name, &what));
            None
        }
    }
}

fn memory(yaml: &Yaml, problems: &mut Problems) -> Option<u64> {
    let text = plain(yaml);
    let found = text.as_deref().and_then(mebibytes);
    if found.is_none() {
        problems.push(wrong(
            yaml,
            "memory",
            "a size",
            "for example `16G` or `512M`",
        ));
    }
    found
}

fn time(yaml: &Yaml, problems: &mut Problems) -> Option<u32> {
    let text = plain(yaml);
    let found = text.as_deref().and_then(minutes);
    if found.is_none() {
        let help =
            "for example `90m`, `2h`, `1d`, `02:30:00` or `1-12:00:00`; a number alone is minutes";
        problems.push(wrong(yaml, "time", "a duration", help));
    }
    found
}

fn wrong(yaml: &Yaml, name: &str, what: &str, help: &str) -> Diagnostic {
    let problem = match &yaml.kind {
        Kind::Text(text) => Diagnostic::new(yaml.span, format!("`{name}: {text}` is not {what}")),
        Kind::Number(number) => {
            Diagnostic::new(yaml.span, format!("`{name}: {number}` is not {what}"))
        }
        _ => expected(yaml, name, what),
    };
    problem.help(help)
}

fn plain(yaml: &Yaml) -> Option<String> {
    match &yaml.kind {
        Kind::Text(text) => Some(text.trim().to_owned()),
        Kind::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// `16G`, `512M`, `1.5T`, with or without `B` or `iB`: powers of 1024, as Slurm counts. A unit has to be there.
fn mebibytes(text: &str) -> Option<u64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "m" | "mb" | "mib" => 1.0,
        "g" | "gb" | "gib" => 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0,
        _ => return None,
    };
    let mebibytes = (number.parse::<f64>().ok()? * factor).ceil();
    (1.0..1e12).contains(&mebibytes).then_some(mebibytes as u64)
}

/// Slurm's `minutes`, `minutes:seconds`, `hours:minutes:seconds` and `days-hours[:minutes[:seconds]]` (sbatch(1), `--time`),
/// and `90m`, `2h`, `1d`. Seconds are rounded up.
fn minutes(text: &str) -> Option<u32> {
    let whole = |text: &str| text.parse::<u32>().ok();
    if let Some(number) = text.strip_suffix(['m', 'h', 'd']) {
        let factor = match text.as_bytes().last()? {
            b'm' => 1.0,
            b'h' => 60.0,
            _ => 1440.0,
        };
        let minutes = (number.trim().parse::<f64>().ok()? * factor).ceil();
        return (1.0..1e8).contains(&minutes).then_some(minutes as u32);
    }
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(whole(days)?), rest),
        None => (None, text),
    };
    let parts: Vec<u32> = rest.split(':').map(whole).collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match (days, parts.as_slice()) {
        (Some(_), [hours]) => (*hours, 0, 0),
        (Some(_), [hours, minutes]) => (*hours, *minutes, 0),
        (None, [minutes]) => (0, *minutes, 0),
        (None, [minutes, seconds]) => (0, *minutes, *seconds),
        (_, [hours, minutes, seconds]) => (*hours, *minutes, *seconds),
        _ => return None,
    };
    let days = days.unwrap_or(0).checked_mul(1440)?;
    let total = hours
        .checked_mul(60)?
        .checked_add(minutes)?
        .checked_add(seconds.div_ceil(60))?
        .checked_add(days)?;
    (total > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(mebibytes("512M"), Some(512));
        assert_eq!(mebibytes("1.5 GiB"), Some(1536));
        assert_eq!(mebibytes("2T"), Some(2 << 20));
        for wrong in ["16", "G", "0M", "-1G", "1K", "many"] {
            assert_eq!(mebibytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("90", 90),
            ("90m", 90),
            ("1.5h", 90),
            ("1d", 1440),
            ("01:30", 2),
            ("02:30:00", 150),
            ("0:00:01", 1),
            ("1-12", 2160),
            ("1-12:30", 2190),
            ("1-00:00:30", 1441),
        ] {
            assert_eq!(minutes(text), Some(expected), "{text}");
        }
        for wrong in ["", "0", "h", "1:2:3:4", "-5", "soon", "1-", "99999999999"] {
            assert_eq!(minutes(wrong), None, "{wrong}");
        }
    }
}
