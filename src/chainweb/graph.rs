//! The graphs of chains: the chains whose newest blocks a new block of a chain names.
//!
//! Source: digraph, `Data/DiGraph.hs`; chainweb-node, `Chainweb/Graph.hs`.

/// A graph of chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graph {
    /// 1 chain.
    Singleton,
    /// 2 chains.
    Pair,
    /// 3 chains.
    Triangle,
    /// 10 chains.
    Petersen,
    /// 20 chains.
    Twenty,
    /// 98 chains, four adjacent ones each.
    D4K4,
}

impl Graph {
    /// The number of its chains, which are numbered from 0.
    pub fn chains_count(self) -> u32 {
        match self {
            Graph::Singleton => 1,
            Graph::Pair => 2,
            Graph::Triangle => 3,
            Graph::Petersen => PETERSEN.len() as u32,
            Graph::Twenty => TWENTY.len() as u32,
            Graph::D4K4 => D4K4.len() as u32,
        }
    }

    /// The chains adjacent to this one, ascending; `None` if the graph does not have it.
    pub fn adjacents(self, chain: u32) -> Option<Vec<u32>> {
        let index = chain as usize;
        let row: &[u8] = match self {
            Graph::Singleton => [[]].get(index)?,
            Graph::Pair => [[1], [0]].get(index)?,
            Graph::Triangle => [[1, 2], [0, 2], [0, 1]].get(index)?,
            Graph::Petersen => PETERSEN.get(index)?,
            Graph::Twenty => TWENTY.get(index)?,
            Graph::D4K4 => D4K4.get(index)?,
        };
        Some(row.iter().map(|chain| u32::from(*chain)).collect())
    }
}

const PETERSEN: [[u8; 3]; 10] =
    [[2, 3, 5], [3, 4, 6], [0, 4, 7], [0, 1, 8], [1, 2, 9], [0, 6, 9], [1, 5, 7], [2, 6, 8], [3, 7, 9], [4, 5, 8]];

/// A pentagram, 5 to 9; a ring, 10 to 19; and the chains 0 to 4, which join both.
const TWENTY: [[u8; 3]; 20] = [
    [5, 10, 15],
    [6, 11, 16],
    [7, 12, 17],
    [8, 13, 18],
    [9, 14, 19],
    [0, 7, 8],
    [1, 8, 9],
    [2, 5, 9],
    [3, 5, 6],
    [4, 6, 7],
    [0, 11, 19],
    [1, 10, 12],
    [2, 11, 13],
    [3, 12, 14],
    [4, 13, 15],
    [0, 14, 16],
    [1, 15, 17],
    [2, 16, 18],
    [3, 17, 19],
    [4, 10, 18],
];

#[rustfmt::skip]
const D4K4: [[u8; 4]; 98] = [
    [31, 49, 65, 91], [30, 48, 64, 90], [33, 51, 67, 93], [32, 50, 66, 92], [35, 53, 69, 95], [34, 52, 68, 94],
    [37, 55, 57, 97], [36, 54, 56, 96], [39, 43, 59, 85], [38, 42, 58, 84], [41, 45, 61, 87], [40, 44, 60, 86],
    [29, 47, 63, 89], [28, 46, 62, 88], [35, 63, 73, 94], [34, 62, 72, 95], [37, 65, 75, 96], [36, 64, 74, 97],
    [39, 67, 77, 84], [38, 66, 76, 85], [41, 69, 79, 86], [40, 68, 78, 87], [29, 57, 81, 88], [28, 56, 80, 89],
    [31, 59, 83, 90], [30, 58, 82, 91], [33, 61, 71, 92], [32, 60, 70, 93], [13, 23, 49, 78], [12, 22, 48, 79], [1, 25, 51, 80],
    [0, 24, 50, 81], [3, 27, 53, 82], [2, 26, 52, 83], [5, 15, 55, 70], [4, 14, 54, 71], [7, 17, 43, 72], [6, 16, 42, 73],
    [9, 19, 45, 74], [8, 18, 44, 75], [11, 21, 47, 76], [10, 20, 46, 77], [9, 37, 61, 89], [8, 36, 60, 88], [11, 39, 63, 91],
    [10, 38, 62, 90], [13, 41, 65, 93], [12, 40, 64, 92], [1, 29, 67, 95], [0, 28, 66, 94], [3, 31, 69, 97], [2, 30, 68, 96],
    [5, 33, 57, 85], [4, 32, 56, 84], [7, 35, 59, 87], [6, 34, 58, 86], [7, 23, 53, 83], [6, 22, 52, 82], [9, 25, 55, 71],
    [8, 24, 54, 70], [11, 27, 43, 73], [10, 26, 42, 72], [13, 15, 45, 75], [12, 14, 44, 74], [1, 17, 47, 77], [0, 16, 46, 76],
    [3, 19, 49, 79], [2, 18, 48, 78], [5, 21, 51, 81], [4, 20, 50, 80], [27, 34, 59, 89], [26, 35, 58, 88], [15, 36, 61, 91],
    [14, 37, 60, 90], [17, 38, 63, 93], [16, 39, 62, 92], [19, 40, 65, 95], [18, 41, 64, 94], [21, 28, 67, 97],
    [20, 29, 66, 96], [23, 30, 69, 85], [22, 31, 68, 84], [25, 32, 57, 87], [24, 33, 56, 86], [9, 18, 53, 81], [8, 19, 52, 80],
    [11, 20, 55, 83], [10, 21, 54, 82], [13, 22, 43, 71], [12, 23, 42, 70], [1, 24, 45, 73], [0, 25, 44, 72], [3, 26, 47, 75],
    [2, 27, 46, 74], [5, 14, 49, 77], [4, 15, 48, 76], [7, 16, 51, 79], [6, 17, 50, 78],
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_has_two_ends() {
        for (graph, degree) in [
            (Graph::Singleton, 0),
            (Graph::Pair, 1),
            (Graph::Triangle, 2),
            (Graph::Petersen, 3),
            (Graph::Twenty, 3),
            (Graph::D4K4, 4),
        ] {
            for chain in 0..graph.chains_count() {
                let adjacents = graph.adjacents(chain).unwrap();
                assert_eq!(adjacents.len(), degree, "{graph:?} {chain}");
                assert!(adjacents.is_sorted() && !adjacents.contains(&chain), "{graph:?} {chain}");
                for other in adjacents {
                    assert!(graph.adjacents(other).unwrap().contains(&chain), "{graph:?} {chain} {other}");
                }
            }
            assert_eq!(graph.adjacents(graph.chains_count()), None);
        }
    }
}
