//! Cells in columns, as people read them.

/// The lines of a table: each column as wide as its widest cell, empty ones left out, and so is
/// what is empty at the end of a line.
pub fn table(rows: Vec<Vec<String>>) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells = cells.filter(|(_, width)| **width > 0);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// The same below the names of its columns; a column that no row has anything in is left out.
pub fn titled(titles: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    let is_used = |at: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(at));
        cells.any(|cell| !cell.is_empty())
    };
    let title = |(at, title): (usize, &&str)| match is_used(at) {
        true => (*title).to_owned(),
        false => String::new(),
    };
    let head = titles.iter().enumerate().map(title).collect();
    let mut all = vec![head];
    all.extend(rows);
    table(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_empty_ones_are_left_out() {
        let rows = |rows: &[&[&str]]| -> Vec<Vec<String>> {
            let row = |row: &&[&str]| row.iter().map(|cell| (*cell).to_owned()).collect();
            rows.iter().map(row).collect()
        };
        let plain = table(rows(&[&["a", "", "long", ""], &["bb", "", "é", "x"]]));
        assert_eq!(plain, ["a   long", "bb  é     x"]);
        let named = titled(&["id", "none", "of"], rows(&[&["a", "", "b"], &["c"]]));
        assert_eq!(named, ["id  of", "a   b", "c"]);
        assert_eq!(titled(&["id"], Vec::new()), [""]);
    }
}
