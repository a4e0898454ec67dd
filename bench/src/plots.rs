//! The figures that subjects have in common, as bars in an SVG.

use std::fmt::Write as _;

use crate::report::Figure;

/// Sizes in pixels.
const WIDTH: f64 = 860.0;
const NAMES: f64 = 150.0;
const VALUES: f64 = 130.0;
const BAR: f64 = 18.0;
const STEP: f64 = 28.0;
const HEAD: f64 = 46.0;

/// One bar for each figure, on a logarithmic scale: the extremes of the runs are a line across its
/// end. Figures without a value are left out; `None` where none has one.
pub fn bars(title: &str, figures: &[(&str, &Figure)]) -> Option<String> {
    let told: Vec<_> = figures.iter().filter(|(_, figure)| figure.min > 0.0).collect();
    let of = |pick: fn(&Figure) -> f64| told.iter().map(move |(_, figure)| pick(figure));
    // Whole powers of ten; a bar of no length would say zero.
    let least = of(|it| it.min).reduce(f64::min)?.log10().floor() - 0.2;
    let most = of(|it| it.max).reduce(f64::max)?.log10().max(least + 1.0);
    let x =
        |value: f64| NAMES + (value.log10() - least) / (most - least) * (WIDTH - NAMES - VALUES);
    let height = HEAD + STEP * told.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"16\">{title}</text>\n"
    );
    for (place, (name, figure)) in told.iter().enumerate() {
        let (top, end) = (HEAD + STEP * place as f64, x(figure.value));
        let (middle, text) = (top + BAR / 2.0, top + BAR - 4.0);
        let ours = name.contains("peer") || name.contains("-link");
        let colour = if ours { "#1565c0" } else { "#90a4ae" };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{name}</text>\n\
             <rect x=\"{NAMES}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
             <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"black\"/>\n\
             <text x=\"{:.1}\" y=\"{text}\">{:.0} {}</text>",
            NAMES - 8.0,
            end - NAMES,
            x(figure.min),
            x(figure.max),
            x(figure.max) + 8.0,
            figure.value,
            figure.unit
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Better;

    #[test]
    fn each_figure_with_a_value_has_a_bar() {
        let of = |runs: &[f64]| Figure::of("f", "µs", Better::Lower, runs, "by hand");
        let (near, far) = (of(&[10.0, 12.0, 20.0]), of(&[1_000.0]));
        let none = Figure::skipped("f", Better::Lower, "no such program");
        let svg = bars("p50", &[("one-peer", &near), ("ray", &far), ("nginx", &none)]);
        let svg = svg.expect("two have values");
        assert_eq!(svg.matches("<path").count(), 2);
        assert!(svg.contains(">one-peer<") && !svg.contains("nginx") && svg.contains("1000 µs"));
        assert!(bars("p50", &[("nginx", &none)]).is_none());
    }
}
