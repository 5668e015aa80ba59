//! Colour scales that keep their order for colour-blind readers and in grey.

/// An sRGB colour.
pub(super) type Rgb = [u8; 3];

/// Stops of viridis at even distances.
const VIRIDIS: [Rgb; 10] = [
    [0x44, 0x01, 0x54],
    [0x48, 0x28, 0x78],
    [0x3e, 0x49, 0x89],
    [0x31, 0x68, 0x8e],
    [0x26, 0x82, 0x8e],
    [0x1f, 0x9e, 0x89],
    [0x35, 0xb7, 0x79],
    [0x6e, 0xce, 0x58],
    [0xb5, 0xde, 0x2b],
    [0xfd, 0xe7, 0x25],
];

/// viridis at `t` from 0 to 1.
pub(super) fn viridis(t: f64) -> Rgb {
    let at = t.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let i = (at as usize).min(VIRIDIS.len() - 2);
    let mix = |c: usize| {
        let (a, b) = (f64::from(VIRIDIS[i][c]), f64::from(VIRIDIS[i + 1][c]));
        (a + (b - a) * (at - i as f64)).round() as u8
    };
    [mix(0), mix(1), mix(2)]
}

/// `#rrggbb`.
pub(super) fn hex(c: Rgb) -> String {
    format!("#{:02x}{:02x}{:02x}", c[0], c[1], c[2])
}

/// Relative luminance by WCAG 2.
pub(super) fn luminance(c: Rgb) -> f64 {
    let linear = c.map(|v| {
        let v = f64::from(v) / 255.0;
        if v <= 0.03928 {
            v / 12.92
        } else {
            ((v + 0.055) / 1.055).powf(2.4)
        }
    });
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

/// Black or white, whichever reads better on a colour.
pub(super) fn ink(on: Rgb) -> &'static str {
    // Contrast with white and with black are equal at this luminance.
    if luminance(on) > 0.179 {
        "#000"
    } else {
        "#fff"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_brightens_all_the_way() {
        let steps: Vec<f64> = (0..=100)
            .map(|i| luminance(viridis(f64::from(i) / 100.0)))
            .collect();
        assert!(steps.windows(2).all(|w| w[1] > w[0]));
        assert_eq!(hex(viridis(0.0)), "#440154");
        assert_eq!(hex(viridis(1.0)), "#fde725");
        assert_eq!(hex(viridis(f64::NAN)).len(), 7);
    }

    #[test]
    fn text_on_every_colour_has_contrast() {
        for i in 0..=100 {
            let c = viridis(f64::from(i) / 100.0);
            let l = luminance(c);
            let contrast = if ink(c) == "#fff" {
                1.05 / (l + 0.05)
            } else {
                (l + 0.05) / 0.05
            };
            assert!(contrast >= 4.5, "{c:?} {contrast}");
        }
    }
}
