use kronsae::*;
use std::time::Instant;
fn main() {
    let block: usize = std::env::args().nth(1).map_or(16, |s| s.parse().unwrap());
    for (r, d, b) in
        [(4096usize, 576usize, 48usize), (4096, 576, 192), (32768, 2304, 48), (4096, 576, 1), (32768, 2304, 1)]
    {
        let mut w = Aligned::<f32>::zeroed(r * d, "w").unwrap();
        w.fill(0.01);
        let mut x = Aligned::<f32>::zeroed(b * d, "x").unwrap();
        x.fill(0.5);
        let bias = vec![0.0; r];
        let mut y = Aligned::<f32>::zeroed(b * r, "y").unwrap();
        let isa = Isa::detect().unwrap();
        let m = sae::MatrixRef::f32(&w, r, d, d);
        let n = (4e9 as usize / (r * d * b)).max(3);
        let mut best = f64::MAX;
        for _ in 0..n {
            let t = Instant::now();
            let mut at = 0;
            while at < r {
                pre_activations(isa, m, &bias, &x, d, b, at..(at + block).min(r), &mut y, r);
                at += block;
            }
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!(
            "block {block} r{r} d{d} b{b}: {:.3} ms {:.1} GF/s {:.1} GB/s",
            best * 1e3,
            2.0 * (r * d * b) as f64 / best / 1e9,
            (r * d * 4) as f64 / best / 1e9
        );
    }
}
