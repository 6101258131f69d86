"""The benchmark of image steps: both loops do the same, and every row is there."""

import re

from eblvm.benchmarks.speed import images


def test_loops_agree_and_all_are_timed(capsys):
    images.main(
        "--recipe image/vae_ebm_digits --chains 4 --steps 20 --repeats 2 --threads 1 --cpu".split()
    )
    text = capsys.readouterr().out
    assert float(re.search(r"agree to (\S+) of", text).group(1)) < 1e-4
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 4 and "textbook" in rows[0]
    assert "1.00 (1.00–1.00)" in rows[0]
    for row in rows:  # the parts are shares of one step
        shares = [int(share) for share in re.findall(r"(\d+) %", row)]
        assert len(shares) == len(images.Loop.parts) and abs(sum(shares) - 100) <= 3
