//! Suggestions for a name that the user mistyped.

/// Largest number of suggestions.
const MAX_SUGGESTIONS: usize = 3;
/// Similarity that a suggestion must exceed, by Jaro's measure from 0 to 1. clap takes 0.7 for its flags;
/// here it is more, because names of servers often begin alike.
const MIN_SIMILARITY: f64 = 0.8;

/// Returns those of `names` that are most similar to `typed`, the most similar first.
#[must_use]
pub fn similar<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let typed = typed.to_lowercase();
    let mut candidates: Vec<(f64, &str)> =
        names.into_iter().map(|name| (strsim::jaro(&typed, &name.to_lowercase()), name)).collect();
    candidates.retain(|(similarity, _)| *similarity > MIN_SIMILARITY);
    candidates.sort_by(|(a, one), (b, other)| b.total_cmp(a).then_with(|| one.cmp(other)));
    candidates.into_iter().map(|(_, name)| name).take(MAX_SUGGESTIONS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_near_and_other_names_are_not() {
        let names = ["web01", "web02", "db01", "build-server", "us-south", "us-east"];
        assert_eq!(similar("web1", names)[0], "web01");
        assert_eq!(similar("WEB02", names)[0], "web02");
        assert_eq!(similar("biuld-server", names), ["build-server"]);
        assert_eq!(similar("us-soutt", names)[0], "us-south");
        assert!(similar("mailgate", names).is_empty());
        assert!(similar("web01", std::iter::repeat_n("web0", 9)).len() == 3);
    }
}
