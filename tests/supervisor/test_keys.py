"""Key files: their modes, what is refused, and the commands that make and list them."""

import os
import stat

import pytest
import zmq.auth

from soloist.protocol.errors import InvalidOptions
from soloist.supervisor import command_line, keys, serve_commands  # noqa: F401 - registered


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestNewPair:
    def test_is_two_files_of_which_one_is_for_its_owner_alone(self, tmp_path):
        before = os.umask(0o002)
        os.umask(before)
        public, secret = keys.new_pair(tmp_path / "new", "ann")
        assert (public.name, secret.name) == ("ann.key", "ann.key_secret")
        assert (mode(public), mode(secret), mode(tmp_path / "new")) == (0o644, 0o600, 0o700)
        assert os.umask(before) == before

    def test_can_be_loaded_by_who_uses_zmq(self, tmp_path):
        public, secret = keys.new_pair(tmp_path, "ann")
        pair = keys.load(secret, is_secret=True)
        assert zmq.auth.load_certificate(secret) == pair
        assert keys.load(public) == (pair[0], b"")

    def test_is_never_the_same(self, tmp_path):
        pairs = {keys.load(keys.new_pair(tmp_path, name)[1]) for name in "ab"}
        assert len(pairs) == 2

    @pytest.mark.parametrize("left", ["ann.key", "ann.key_secret"])
    def test_overwrites_nothing(self, tmp_path, left):
        (tmp_path / left).write_text("precious")
        with pytest.raises(InvalidOptions, match="is there already"):
            keys.new_pair(tmp_path, "ann")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]

    @pytest.mark.parametrize("name", ["", "../ann", "a/b", "."])
    def test_has_a_name_that_is_a_files(self, tmp_path, name):
        with pytest.raises(InvalidOptions, match="no name of a file"):
            keys.new_pair(tmp_path, name)
        assert list(tmp_path.iterdir()) == []

    def test_says_where_it_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InvalidOptions, match="cannot write to"):
            keys.new_pair(tmp_path / "file", "ann")


class TestLoad:
    @pytest.mark.parametrize("text", [None, "", "no key", 'public-key = "short"'])
    def test_refuses_what_is_no_key_file(self, tmp_path, text):
        path = tmp_path / "x.key"
        if text is not None:
            path.write_text(text)
        with pytest.raises(InvalidOptions, match=r"x\.key"):
            keys.load(path)

    def test_needs_the_secret_where_it_is_used(self, tmp_path):
        public, _ = keys.new_pair(tmp_path, "ann")
        with pytest.raises(InvalidOptions, match="ends with _secret"):
            keys.load(public, is_secret=True)

    @pytest.mark.parametrize("bits", [0o640, 0o604, 0o660])
    def test_refuses_a_secret_that_others_can_read(self, tmp_path, bits):
        _, secret = keys.new_pair(tmp_path, "ann")
        secret.chmod(bits)
        with pytest.raises(InvalidOptions, match=f"chmod 600 {secret}"):
            keys.load(secret)


class TestAllowed:
    def test_are_all_public_keys_of_a_folder(self, tmp_path):
        pairs = [keys.load(keys.new_pair(tmp_path, name)[1]) for name in ("ann", "bob")]
        assert keys.load_allowed(tmp_path) == {public for public, _ in pairs}

    def test_are_never_none(self, tmp_path):
        with pytest.raises(InvalidOptions, match="no client is let in"):
            keys.load_allowed(tmp_path)
        with pytest.raises(InvalidOptions, match="there is no folder"):
            keys.load_allowed(tmp_path / "no")

    def test_do_not_leave_out_one_that_cannot_be_read(self, tmp_path):
        keys.new_pair(tmp_path, "ann")
        (tmp_path / "bob.key").write_text("no key")
        with pytest.raises(InvalidOptions, match=r"bob\.key"):
            keys.load_allowed(tmp_path)


class TestCommands:
    def test_make_and_list(self, tmp_path, capfd):
        folder = str(tmp_path / "keys")
        assert command_line.run(["keys", "new", "ann", "--folder", folder]) == 0
        assert capfd.readouterr().out.split() == [
            f"{folder}/ann.key",
            f"{folder}/ann.key_secret",
        ]
        (tmp_path / "keys" / "ann.key_secret").rename(tmp_path / "kept")
        assert command_line.run(["keys", "new", "bob", "--folder", folder]) == 0
        capfd.readouterr()
        assert command_line.run(["keys", "list", "--folder", folder]) == 0
        ann, bob = capfd.readouterr().out.splitlines()
        public = keys.load(tmp_path / "kept")[0].decode()
        assert ann == f"ann  {public}  public alone"
        assert bob.endswith("  with secret")

    def test_refuse_in_one_line(self, tmp_path, capfd):
        folder = str(tmp_path)
        command_line.run(["keys", "new", "ann", "--folder", folder])
        assert command_line.run(["keys", "new", "ann", "--folder", folder]) == 2
        assert "is there already" in capfd.readouterr().err
