from __future__ import annotations


def assert_one_line(result: tuple[int, str, str], *told: str) -> None:
    """Bad input: exit code 2, nothing on standard output, and one line of error that tells all of this."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.startswith("nuclora: ")
    assert err.count("\n") == 1, err
    for part in told:
        assert part in err
