// The measures of balance, in the order of answers. Made by python -m moescope.service.measures.document.

/**
 * @typedef {object} Measure
 * @property {string} title
 * @property {string} formula
 * @property {string} meaning
 * @property {"ratio"|"share"|"number"} unit
 * @property {string} best in terms of N, the number of loads
 * @property {string} worst
 */

/** @type {Record<string, Measure>} */
export const MEASURES = {
  "imbalance_ratio": {
    "title": "Imbalance ratio",
    "formula": "max / mean",
    "meaning": "The busiest one's load as a multiple of a fair share.",
    "unit": "ratio",
    "best": "1",
    "worst": "N"
  },
  "balancedness": {
    "title": "Balancedness",
    "formula": "mean / max",
    "meaning": "The share of the busiest one's time in which an average one has work.",
    "unit": "share",
    "best": "1",
    "worst": "1 / N"
  },
  "max_vio": {
    "title": "MaxVio",
    "formula": "(max - mean) / mean",
    "meaning": "How far the busiest one is above a fair share, as a multiple of it.",
    "unit": "ratio",
    "best": "0",
    "worst": "N - 1"
  },
  "coefficient_of_variation": {
    "title": "Coefficient of variation",
    "formula": "population standard deviation / mean",
    "meaning": "How far a load typically is from a fair share, as a multiple of it.",
    "unit": "ratio",
    "best": "0",
    "worst": "sqrt(N - 1)"
  },
  "normalised_entropy": {
    "title": "Normalised entropy",
    "formula": "exp(H) / N",
    "meaning": "The effective number of ranks or experts, over their number. H is the entropy of the shares in nats. H / ln N, which others call so, is another quantity.",
    "unit": "share",
    "best": "1",
    "worst": "1 / N"
  },
  "gini": {
    "title": "Gini coefficient",
    "formula": "mean absolute difference of all pairs / (2 mean)",
    "meaning": "How unequal all loads are among each other.",
    "unit": "share",
    "best": "0",
    "worst": "1 - 1 / N"
  },
  "dead": {
    "title": "Dead",
    "formula": "number of loads that are 0",
    "meaning": "How many got nothing in the window: dead experts, or idle ranks.",
    "unit": "number",
    "best": "0",
    "worst": "N - 1"
  },
  "dead_fraction": {
    "title": "Dead fraction",
    "formula": "dead / N",
    "meaning": "The share of ranks or experts that got nothing.",
    "unit": "share",
    "best": "0",
    "worst": "1 - 1 / N"
  },
  "hot": {
    "title": "Hot",
    "formula": "number of loads that are 3 means or more",
    "meaning": "How many got 3 times a fair share or more: hot experts, or hot ranks.",
    "unit": "number",
    "best": "0",
    "worst": "N / 3, rounded down"
  },
  "top_tenth_share": {
    "title": "Share of the top tenth",
    "formula": "the k largest loads / all of them, k = N / 10 rounded up",
    "meaning": "What the busiest tenth carries.",
    "unit": "share",
    "best": "k / N",
    "worst": "1"
  }
};

/** A rank or an expert is hot from this multiple of a fair share on. */
export const HOT_FROM = 3;
