"""The page that tells a run to somebody who was not there: self-contained HTML, without scripts."""
