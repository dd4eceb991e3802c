//! One of several profiles, by a few typed letters and the arrow keys: the choice itself, without a terminal.

/// One profile that may be chosen.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) profile: String,
    /// The account's name where it is known, else its number.
    pub(super) account: String,
    pub(super) role: String,
    /// Until when its sign-in is good, in words.
    pub(super) until: String,
}

/// What a person does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Key {
    Letter(char),
    Erase,
    EraseAll,
    Up,
    Down,
    First,
    Last,
    Take,
    Leave,
}

/// What came of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Chosen {
    Profile(String),
    Nothing,
}

/// A choice that is being made.
#[derive(Debug)]
pub(super) struct Pick {
    entries: Vec<Entry>,
    filter: String,
    /// What the filter leaves, best first, as places in `entries`.
    left: Vec<usize>,
    /// A place in `left`.
    at: usize,
}

/// More than anybody types to find a profile.
const LONGEST_FILTER: usize = 64;

impl Pick {
    /// Offers `entries` in their order.
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        let left = (0..entries.len()).collect();
        Self { entries, filter: String::new(), left, at: 0 }
    }

    /// Does what a person does; `Some` when that ends the choice.
    pub(super) fn press(&mut self, key: Key) -> Option<Chosen> {
        let last = self.left.len().saturating_sub(1);
        match key {
            Key::Letter(letter) if self.filter.len() < LONGEST_FILTER => {
                self.filter.push(letter);
                self.narrow();
            }
            Key::Letter(_) => {}
            Key::Erase => {
                self.filter.pop();
                self.narrow();
            }
            Key::EraseAll => {
                self.filter.clear();
                self.narrow();
            }
            Key::Up => self.at = self.at.checked_sub(1).unwrap_or(last),
            Key::Down => self.at = if self.at >= last { 0 } else { self.at + 1 },
            Key::First => self.at = 0,
            Key::Last => self.at = last,
            Key::Take => {
                let entry = self.left.get(self.at).and_then(|&place| self.entries.get(place));
                return entry.map(|entry| Chosen::Profile(entry.profile.clone()));
            }
            Key::Leave => return Some(Chosen::Nothing),
        }
        None
    }

    fn narrow(&mut self) {
        let mut ranked: Vec<(u32, usize)> = self
            .entries
            .iter()
            .enumerate()
            .filter_map(|(place, entry)| Some((entry.rank(&self.filter)?, place)))
            .collect();
        // Stable: of two that fit as well, the one that was used last comes first.
        ranked.sort_by_key(|(rank, _)| *rank);
        self.left = ranked.into_iter().map(|(_, place)| place).collect();
        self.at = 0;
    }

    /// Returns what is shown in `rows` lines of `columns` letters, and which of the lines is chosen.
    pub(super) fn lines(&self, rows: usize, columns: usize) -> (Vec<String>, Option<usize>) {
        let (room, columns) = (rows.saturating_sub(2).max(1), columns.saturating_sub(1).max(8));
        let first = self.at.saturating_sub(room - 1);
        let shown: Vec<&Entry> =
            self.left.iter().skip(first).take(room).filter_map(|&place| self.entries.get(place)).collect();
        let width = |of: fn(&Entry) -> &str| {
            self.entries.iter().map(|entry| of(entry).chars().count()).max().unwrap_or(0).min(40)
        };
        let (name, account, role) =
            (width(|entry| &entry.profile), width(|entry| &entry.account), width(|entry| &entry.role));
        let mut lines = vec![cut(&format!("profile: {}", self.filter), columns)];
        for (row, entry) in shown.iter().enumerate() {
            let mark = if first + row == self.at { '>' } else { ' ' };
            let Entry { profile, account: of, role: as_, until } = entry;
            let line = format!("{mark} {profile:name$}  {of:account$}  {as_:role$}  {until}");
            lines.push(cut(line.trim_end(), columns));
        }
        lines.push(cut(
            &format!(
                "{} of {}: type to filter, arrows, Enter; Esc leaves",
                self.left.len(),
                self.entries.len()
            ),
            columns,
        ));
        let chosen = (!shown.is_empty()).then(|| 1 + self.at - first);
        (lines, chosen)
    }

    /// Returns the choice as a numbered list, for terminals without a cursor.
    pub(super) fn list(&self) -> String {
        let line = |(place, entry): (usize, &Entry)| {
            let Entry { profile, account, role, until } = entry;
            format!("{:3}  {profile}  {account}  {role}  {until}", place + 1).trim_end().to_owned()
        };
        self.entries.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Returns the profile that an answer to [`Self::list`] means: a number, or a name.
    pub(super) fn answered(&self, answer: &str) -> Option<String> {
        let answer = answer.trim();
        let named = self.entries.iter().find(|entry| entry.profile == answer);
        let numbered =
            || self.entries.get(answer.parse::<usize>().ok().and_then(|number| number.checked_sub(1))?);
        named.or_else(numbered).map(|entry| entry.profile.clone())
    }
}

impl Entry {
    /// Returns how well every word of `filter` fits, lower is better; `None` when one does not.
    fn rank(&self, filter: &str) -> Option<u32> {
        let fields = [&self.profile, &self.account, &self.role].map(|field| field.to_lowercase());
        filter.to_lowercase().split_whitespace().try_fold(0u32, |sum, word| {
            let best = fields.iter().filter_map(|field| fit(field, word)).min()?;
            Some(sum.saturating_add(best))
        })
    }
}

/// Returns how far apart the letters of `word` stand in `text`, in their order, at best; `None` when they are not there.
fn fit(text: &str, word: &str) -> Option<u32> {
    let (text, word): (Vec<char>, Vec<char>) = (text.chars().collect(), word.chars().collect());
    let begins = (0..text.len()).filter(|&at| text.get(at) == word.first());
    begins
        .filter_map(|begin| {
            let (mut at, mut gaps) = (begin, 0u32);
            for letter in word.iter().skip(1) {
                let rest = text.get(at + 1..)?;
                let gap = rest.iter().position(|other| other == letter)?;
                gaps = gaps.saturating_add(u32::try_from(gap).ok()?);
                at += 1 + gap;
            }
            let inside = begin > 0 && text.get(begin - 1).is_some_and(|before| before.is_alphanumeric());
            Some(
                gaps.saturating_mul(4)
                    .saturating_add(u32::from(inside) * 2)
                    .saturating_add(u32::from(begin > 0)),
            )
        })
        .min()
}

fn cut(line: &str, columns: usize) -> String {
    line.chars().take(columns).collect()
}

/// Reads what a terminal sent. What it sent half stays in `bytes`, for more to come.
pub(super) fn keys(bytes: &mut Vec<u8>) -> Vec<Key> {
    let mut found = Vec::new();
    while let Some((key, length)) = first_key(bytes) {
        found.extend(key);
        bytes.drain(..length);
    }
    found
}

/// Returns the first key, if it means anything, and its bytes; `None` when there is no whole one.
fn first_key(bytes: &[u8]) -> Option<(Option<Key>, usize)> {
    let first = *bytes.first()?;
    Some(match first {
        b'\r' | b'\n' => (Some(Key::Take), 1),
        3 | 4 | 7 => (Some(Key::Leave), 1),
        8 | 0x7f => (Some(Key::Erase), 1),
        21 | 23 => (Some(Key::EraseAll), 1),
        11 | 16 => (Some(Key::Up), 1),
        9 | 14 => (Some(Key::Down), 1),
        0x1b => return escape(bytes),
        0x20..0x7f => (Some(Key::Letter(char::from(first))), 1),
        0xc2..=0xf4 => {
            let length = match first {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            };
            let text = bytes.get(..length)?;
            let letter = std::str::from_utf8(text).ok().and_then(|text| text.chars().next());
            match letter.filter(|letter| !letter.is_control()) {
                Some(letter) => (Some(Key::Letter(letter)), length),
                None => (None, 1),
            }
        }
        _ => (None, 1),
    })
}

/// Reads an escape sequence (ECMA-48): the cursor's, and whatever else there is to be passed over.
fn escape(bytes: &[u8]) -> Option<(Option<Key>, usize)> {
    match bytes.get(1)? {
        b'[' => {
            let end = bytes.iter().skip(2).position(|byte| (0x40..0x7f).contains(byte))? + 2;
            let key = match (bytes.get(2..end)?, bytes.get(end)?) {
                (_, b'A' | b'Z') => Some(Key::Up),
                (_, b'B') => Some(Key::Down),
                (_, b'H') | (b"1" | b"7" | b"5", b'~') => Some(Key::First),
                (_, b'F') | (b"4" | b"8" | b"6", b'~') => Some(Key::Last),
                _ => None,
            };
            Some((key, end + 1))
        }
        b'O' => {
            let key = match bytes.get(2)? {
                b'A' => Some(Key::Up),
                b'B' => Some(Key::Down),
                b'H' => Some(Key::First),
                b'F' => Some(Key::Last),
                _ => None,
            };
            Some((key, 3))
        }
        // The Escape key, and another one after it.
        _ => Some((Some(Key::Leave), 1)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(profile: &str, account: &str, role: &str) -> Entry {
        Entry { profile: profile.into(), account: account.into(), role: role.into(), until: String::new() }
    }

    fn pick() -> Pick {
        Pick::new(vec![
            entry("prod-admin", "Production", "AdministratorAccess"),
            entry("dev", "Development", "Developer"),
            entry("data", "Development", "Auditor"),
        ])
    }

    fn typed(pick: &mut Pick, text: &str) -> Option<Chosen> {
        let mut bytes = text.as_bytes().to_vec();
        let last = keys(&mut bytes).into_iter().map(|key| pick.press(key)).last().flatten();
        assert!(bytes.is_empty());
        last
    }

    #[test]
    fn letters_narrow_the_choice_and_arrows_move_in_it() {
        for (text, chosen) in [
            ("\r", "prod-admin"),
            ("\x1b[B\r", "dev"),
            ("\x1b[A\r", "data"),
            ("\x1bOB\x1bOB\x1bOB\r", "prod-admin"),
            ("aud\r", "data"),
            ("DEVEL\r", "dev"),
            ("pdadm\r", "prod-admin"),
            ("dev aud\r", "data"),
            ("zz\x7f\x7f\x1b[F\r", "data"),
            ("zz\x15dev\r", "dev"),
            ("\x1b[5;2~\x1b[1;5C\r", "prod-admin"),
        ] {
            assert_eq!(typed(&mut pick(), text), Some(Chosen::Profile(chosen.into())), "{text:?}");
        }
        let mut none = pick();
        assert_eq!(typed(&mut none, "zz\r"), None, "there is nothing to take");
        assert_eq!(none.lines(10, 80).0.last().unwrap(), "0 of 3: type to filter, arrows, Enter; Esc leaves");
        for leave in ["\x03", "\x04", "\x1b\x1b\x1b[A"] {
            let mut pick = pick();
            let mut bytes = leave.as_bytes().to_vec();
            assert_eq!(keys(&mut bytes).first().and_then(|key| pick.press(*key)), Some(Chosen::Nothing));
        }
    }

    #[test]
    fn the_lines_fit_the_window_and_hold_what_is_chosen() {
        let mut pick = Pick::new((0..50).map(|n| entry(&format!("p{n}"), "Account", "Role")).collect());
        for _ in 0..30 {
            pick.press(Key::Down);
            for (rows, columns) in [(24, 80), (5, 20), (1, 1)] {
                let (lines, chosen) = pick.lines(rows, columns);
                assert!(lines.len() <= rows.max(3) && lines.iter().all(|line| line.len() <= columns.max(9)));
                assert!(lines[chosen.unwrap()].starts_with(&format!("> p{}", pick.at)), "{lines:?}");
            }
        }
    }

    #[test]
    fn a_list_is_answered_by_number_or_name() {
        let pick = pick();
        assert_eq!(pick.list().lines().nth(1), Some("  2  dev  Development  Developer"));
        for (answer, chosen) in
            [("2", Some("dev")), (" data ", Some("data")), ("0", None), ("4", None), ("", None)]
        {
            assert_eq!(pick.answered(answer).as_deref(), chosen, "{answer}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_panics_or_is_kept_for_ever(bytes: Vec<u8>) {
            let mut pick = pick();
            let mut rest = bytes.clone();
            for key in keys(&mut rest) {
                pick.press(key);
                pick.lines(7, 30);
            }
            prop_assert!(rest.is_empty() || rest[0] == 0x1b || rest.len() < 4);
        }
    }
}
