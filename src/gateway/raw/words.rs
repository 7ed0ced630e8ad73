//! Hints for words that are not known: the nearest one that is, the table it belongs in, or the whole list.
use super::text::Text;
use crate::gateway::report::quoted;

/// «did you mean» if a word is near, else the words there are.
pub(crate) fn nearest_or_list(text: &Text, words: &[&str]) -> String {
    match nearest(&text.text, words).filter(|_| !text.hidden) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("known here: {}", words.join(", ")),
    }
}

/// The word that differs from `text` in the fewest letters, if those are few.
pub(crate) fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    // Nobody mistypes a key into a text this long, and the distance takes time.
    if text.len() > 64 {
        return None;
    }
    let text = text.to_lowercase().replace('-', "_");
    let (distance, word) = words
        .iter()
        .map(|word| (distance(&text, &word.replace('-', "_")), *word))
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.len() / 5 && distance < word.len()).then_some(word)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut rows: [Vec<usize>; 2] = [Vec::new(), (0..=b.len()).collect()];
    let mut previous = None;
    for (i, x) in a.chars().enumerate() {
        let [before, last] = &rows;
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(last, j) + usize::from(x != *y)).min(at(last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = j > 0 && previous == Some(*y) && b.get(j - 1) == Some(&x);
            if swapped {
                best = best.min(at(before, j - 1) + 1);
            }
            row.push(best);
        }
        let [_, last] = rows;
        rows = [last, row];
        previous = Some(x);
    }
    let [_, last] = rows;
    last.last().copied().unwrap_or(0)
}

/// What to do about a key that is not known in a table.
pub(crate) fn unknown_key_hint(key: &str, keys: &[&str], elsewhere: Option<&str>) -> String {
    match (nearest(key, keys), elsewhere) {
        (_, Some(name)) => format!("{} belongs in `{name}`", quoted(key)),
        (Some(near), None) => format!("did you mean `{near}`?"),
        (None, None) => format!("known here: {}", keys.join(", ")),
    }
}

/// The name of a table as a message shows it.
pub(crate) fn in_code(name: &str) -> String {
    if name.starts_with('[') { format!("`{name}`") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("listen", "listen"), 0);
        assert_eq!(distance("lisen", "listen"), 1);
        assert_eq!(distance("lsiten", "listen"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn nearest_finds_typos_and_nothing_else() {
        let words = ["listen", "name", "when_slow", "drop-oldest"];
        assert_eq!(nearest("lisetn", &words), Some("listen"));
        assert_eq!(nearest("when-slow", &words), Some("when_slow"));
        assert_eq!(nearest("Name", &words), Some("name"));
        assert_eq!(nearest("drop_oldest", &words), Some("drop-oldest"));
        assert_eq!(nearest("banana", &words), None);
        assert_eq!(nearest("", &words), None);
    }
}
