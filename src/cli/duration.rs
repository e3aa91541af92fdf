//! Formats of durations for the user.

use std::time::Duration;

/// Formats a duration as `1:02:03`, or `02:03` below an hour.
pub fn clock_face(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

/// Formats a duration roughly: `45s`, `12m`, `7h 5m`, `3d 4h`.
pub fn approximate(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_approximate() {
        let texts = [45, 720, 25_500, 273_600].map(|seconds| approximate(Duration::from_secs(seconds)));
        assert_eq!(texts, ["45s", "12m", "7h 5m", "3d 4h"]);
        assert_eq!([3723, 59].map(|seconds| clock_face(Duration::from_secs(seconds))), ["1:02:03", "00:59"]);
    }
}
