//! Which rows of a submit are encoded together.

/// Rows of a submit that make one batch: neighbours in ascending order. Rows that lie equally far apart are encoded alone,
/// as a view whose stride leaves the others out; any others with what lies between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// The first row.
    pub(super) first: usize,
    last: usize,
    /// Rows that were asked for.
    pub(super) tokens: usize,
    /// How far apart they lie; 0: not equally far.
    step: usize,
}

impl Cut {
    /// One row.
    pub(super) fn new(row: usize) -> Self {
        Cut { first: row, last: row, tokens: 1, step: 1 }
    }

    /// With another row behind.
    pub(super) fn and(self, row: usize) -> Self {
        let step = match (self.tokens, row - self.last) {
            (1, apart) => apart,
            (_, apart) if apart == self.step => apart,
            _ => 0,
        };
        Cut { last: row, tokens: self.tokens + 1, step, ..self }
    }

    /// Rows from one that is encoded to the next.
    pub(super) fn stride(&self) -> usize {
        self.step.max(1)
    }

    /// Rows that are encoded.
    pub(super) fn rows(&self) -> usize {
        if self.step == 0 { self.last - self.first + 1 } else { self.tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(rows: &[usize]) -> Cut {
        rows[1..].iter().fold(Cut::new(rows[0]), |cut, row| cut.and(*row))
    }

    #[test]
    fn rows_left_out_cost_nothing_where_they_can() {
        for (rows, stride, encoded) in [
            (&[7][..], 1, 1),
            (&[7, 8, 9], 1, 3),
            (&[0, 500], 500, 2),
            (&[3, 7, 11, 15], 4, 4),
            (&[3, 7, 12], 1, 10),
            (&[3, 7, 12, 16], 1, 14),
        ] {
            let cut = of(rows);
            assert_eq!((cut.stride(), cut.rows(), cut.tokens), (stride, encoded, rows.len()), "{rows:?}");
        }
    }

    proptest! {
        /// Every row asked for is one of those encoded, and none encoded lies outside.
        #[test]
        fn every_row_is_in_it(steps in proptest::collection::vec(1..5_usize, 0..20), first in 0..9_usize) {
            let mut rows = vec![first];
            rows.extend(steps.iter().scan(first, |at, step| { *at += step; Some(*at) }));
            let cut = of(&rows);
            let encoded: Vec<usize> = (0..cut.rows()).map(|at| cut.first + at * cut.stride()).collect();
            prop_assert!(rows.iter().all(|row| encoded.contains(row)), "{rows:?} {cut:?}");
            prop_assert_eq!(encoded.last(), rows.last());
        }
    }
}
