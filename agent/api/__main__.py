"""`python -m lifelong`."""

from lifelong.agent.cli import entry

if __name__ == "__main__":
    entry()
