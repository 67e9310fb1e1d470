"""Sweeps: `plan` (config, candidates, trials), `trials` (running them on Ray Tune), `ledger` (proof), `report`."""
