//! The sparse lists of a batch: who touches which row. A counting sort turns what each token touched into what touched
//! each row, tokens ascending, so that every row's gradient is one sum in one order.

use kronsae::Term;

/// What each token touched: `slots` entries a token, the first `counts[t]` used.
#[derive(Debug)]
pub(super) struct Touched {
    /// Row (latent or encoder row) and coefficient.
    pub(super) entries: Vec<Term>,
    pub(super) counts: Vec<u32>,
    pub(super) slots: usize,
}

impl Touched {
    pub(super) fn new(tokens: usize, slots: usize) -> Self {
        Touched { entries: vec![Term { row: 0, coefficient: 0.0 }; tokens * slots], counts: vec![0; tokens], slots }
    }

    pub(super) fn of(&self, token: usize) -> &[Term] {
        &self.entries[token * self.slots..][..self.counts[token] as usize]
    }
}

/// What touched each row: terms whose `row` is the token.
#[derive(Debug)]
pub(super) struct ByRow {
    starts: Vec<u32>,
    ends: Vec<u32>,
    terms: Vec<Term>,
}

impl ByRow {
    pub(super) fn new(rows: usize) -> Self {
        ByRow { starts: vec![0; rows + 1], ends: vec![0; rows], terms: Vec::new() }
    }

    /// Sorts what `tokens` tokens touched, list after list. Several touches of a row by one token become one term.
    pub(super) fn sort(&mut self, lists: &[&Touched], tokens: usize) {
        let rows = self.ends.len();
        self.starts.fill(0);
        for token in 0..tokens {
            for term in lists.iter().flat_map(|list| list.of(token)) {
                self.starts[term.row as usize + 1] += 1;
            }
        }
        for row in 0..rows {
            self.starts[row + 1] += self.starts[row];
        }
        self.ends.copy_from_slice(&self.starts[..rows]);
        self.terms.clear();
        self.terms.resize(self.starts[rows] as usize, Term { row: 0, coefficient: 0.0 });
        for token in 0..tokens {
            for term in lists.iter().flat_map(|list| list.of(token)) {
                let row = term.row as usize;
                let end = self.ends[row] as usize;
                if end > self.starts[row] as usize && self.terms[end - 1].row as usize == token {
                    self.terms[end - 1].coefficient += term.coefficient;
                } else {
                    self.terms[end] = Term { row: token as u32, coefficient: term.coefficient };
                    self.ends[row] += 1;
                }
            }
        }
    }

    /// The terms of a row: token and coefficient, tokens ascending.
    pub(super) fn of(&self, row: usize) -> &[Term] {
        &self.terms[self.starts[row] as usize..self.ends[row] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_merged_and_in_token_order() {
        let mut touched = Touched::new(3, 4);
        let mut put = |token: usize, rows: &[u32]| {
            touched.counts[token] = rows.len() as u32;
            for (i, &row) in rows.iter().enumerate() {
                touched.entries[token * 4 + i] = Term { row, coefficient: (token * 10 + i) as f32 };
            }
        };
        put(0, &[2, 0, 2]);
        put(1, &[]);
        put(2, &[2, 1]);
        let mut by_row = ByRow::new(4);
        by_row.sort(&[&touched], 3);
        let term = |row, coefficient| Term { row, coefficient };
        assert_eq!(by_row.of(0), [term(0, 1.0)]);
        assert_eq!(by_row.of(1), [term(2, 21.0)]);
        assert_eq!(by_row.of(2), [term(0, 2.0), term(2, 20.0)]);
        assert_eq!(by_row.of(3), []);
    }
}
