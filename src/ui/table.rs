//! Tables of text: aligned columns, a line below the header, nothing else.

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Draws rows below a header. A column whose cells are all numbers is right-aligned; `width` limits the whole where given.
pub fn table(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let mut table = Table::new();
    table
        .load_style(STYLE)
        .set_header(header.iter().map(Cell::new));
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    for row in rows {
        table.add_row(row.iter().map(Cell::new));
    }
    for column in 0..header.len() {
        let numeric = |row: &Vec<String>| {
            row.get(column)
                .is_none_or(|cell| cell.is_empty() || cell.replace(',', "").parse::<f64>().is_ok())
        };
        if let Some(column) = table
            .column_mut(column)
            .filter(|_| !rows.is_empty() && rows.iter().all(numeric))
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if let Some(column) = table.column_mut(column) {
            column.set_padding((0, 2));
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// Columns of the terminal that standard output or standard error goes to; `None` where it goes elsewhere.
pub fn terminal_width(stderr: bool) -> Option<u16> {
    let mut table = Table::new();
    if stderr {
        table.use_stderr();
    }
    table.width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_numbers_right() {
        let rows = [
            vec!["questions".into(), "16,407".into()],
            vec!["dedup.judge".into(), "857".into()],
        ];
        insta::assert_snapshot!(table(&["node", "rows"], &rows, None), @r"
        node            rows
        ──────────────────────
        questions     16,407
        dedup.judge      857
        ");
    }
}
