//! What was drawn, as a picture.

use std::fmt::Write as _;

use fedpeft_page::escape;
use ratatui::{
    buffer::{Buffer, Cell},
    style::{Color, Modifier},
};

/// Width and height of a cell, and how far the foot of a letter is below the cell's top.
const CELL: (f64, f64, f64) = (8.4, 17.0, 13.0);
const PAPER: &str = "#16181d";
const INK: &str = "#d7dae0";

/// An SVG of a screen: needs nothing else, and letters keep to their cells in any font.
pub fn svg(buffer: &Buffer) -> String {
    let (columns, rows) = (buffer.area.width, buffer.area.height);
    let (width, height) = (f64::from(columns) * CELL.0 + 16.0, f64::from(rows) * CELL.1 + 16.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" width=\"{width:.0}\" \
         height=\"{height:.0}\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n\
         <g font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"14\">\n"
    );
    for y in 0..rows {
        let mut x = 0;
        while x < columns {
            let begun = x;
            let look = buffer.cell((x, y)).map(look);
            let mut text = String::new();
            while let Some(cell) =
                buffer.cell((x, y)).filter(|cell| Some(self::look(cell)) == look && x < columns)
            {
                text.push_str(cell.symbol());
                x += 1;
            }
            run(&mut svg, (begun, y), &text, look.unwrap_or((INK, false)));
        }
    }
    svg + "</g>\n</svg>\n"
}

/// Letters of one look: blanks only between words, for viewers shrink wider ones.
fn run(svg: &mut String, (x, y): (u16, u16), text: &str, (colour, bold): (&str, bool)) {
    let weight = if bold { " font-weight=\"bold\"" } else { "" };
    let top = 8.0 + CELL.1 * f64::from(y) + CELL.2;
    let mut column = f64::from(x);
    for letters in text.split("  ") {
        let before = letters.chars().take_while(|c| c.is_whitespace()).count() as f64;
        let (left, words) = (8.0 + CELL.0 * (column + before), letters.trim());
        column += letters.chars().count() as f64 + 2.0;
        if words.is_empty() {
            continue;
        }
        let length = CELL.0 * words.chars().count() as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{left:.1}\" y=\"{top:.1}\" textLength=\"{length:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
             fill=\"{colour}\"{weight}>{}</text>",
            escape(words)
        );
    }
}

fn look(cell: &Cell) -> (&'static str, bool) {
    let colour = match cell.fg {
        Color::Red => "#f07178",
        Color::Green => "#a5d66f",
        Color::Yellow => "#ffcb6b",
        Color::Cyan => "#65c7e8",
        Color::DarkGray => "#7a8290",
        // The terminal's own.
        _ => INK,
    };
    (colour, cell.modifier.contains(Modifier::BOLD))
}
