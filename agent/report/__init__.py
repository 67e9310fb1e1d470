"""Reports on finished runs: `runs` (reading), `tables`, `plots`, and `page`, the HTML page of them all."""
