"""Packing clips and photographs, reading the pack, and the `degrade` command."""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

cv2 = pytest.importorskip("cv2")
av = pytest.importorskip("av")

from setevsr_core import cli  # noqa: E402
from setevsr_core.errors import InputError, SettingsError, VideoError  # noqa: E402
from setevsr_core.training import pack_command, packing, sources  # noqa: E402
from setevsr_core.training.data import PackedDataset, PackSettings, Source, pack  # noqa: E402
from setevsr_core.training.degradation import Degradation, DegradationConfig, OrderConfig  # noqa: E402
from setevsr_core.video.reading import VideoReader  # noqa: E402
from setevsr_core.video.writing import VideoWriter  # noqa: E402
from setevsr_core.video.yuv import ColourTags  # noqa: E402

from .test_formats import uneven_clip  # noqa: E402
from .video_helpers import gradient_frames, stream_facts  # noqa: E402


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of colour, detailed enough to tell shifts apart."""
    noise = np.random.default_rng(seed).random((height // 8 + 2, width // 8 + 2, 3), dtype=np.float32)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return (np.clip(smooth, 0, 1) * 255).astype(np.uint8)


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24000, 1001))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "8", "preset": "ultrafast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    wide = picture(96, 160)
    write_video(folder / "pan.mp4", [wide[:, 2 * i : 2 * i + 120] for i in range(16)])
    cv2.imwrite(str(folder / "photo.png"), picture(150, 170, 1))
    (folder / "notes.txt").write_text("not material")
    return folder


SMALL = {"size": 32, "frames": 3, "shard_segments": 4, "window": 8, "lead_in": 1, "min_energy": 0.0, "photo_share": 0.5}


@pytest.fixture(scope="module")
def packed(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack([Source(material, "made here")], tmp_path_factory.mktemp("pack"), segments=7, seed=3, **SMALL)


def test_pack_writes_whole_shards_with_records(packed: Path) -> None:
    assert sorted(path.name for path in packed.iterdir()) == ["meta.json", "shard_00000", "shard_00001"]
    hr, lr = (np.load(packed / "shard_00001" / name) for name in ("hr.npy", "lr.npy"))
    assert hr.shape == (4, 3, 32, 32, 3) and lr.shape == (4, 3, 8, 8, 3)
    assert hr.dtype == lr.dtype == np.uint8
    meta = json.loads((packed / "meta.json").read_text())
    assert meta["sources"][0]["licence"] == "made here"
    assert meta["videos"] == ["pan.mp4"] and meta["photos"] == ["photo.png"]
    records = json.loads((packed / "shard_00000" / "meta.json").read_text())["segments"]
    assert {record["source"] for record in records} == {"pan.mp4", "photo.png"}


def test_pack_is_reproducible_and_resumes(material: Path, packed: Path, tmp_path: Path) -> None:
    again = pack([Source(material, "made here")], tmp_path / "again", segments=4, seed=3, **SMALL)
    assert not (again / "shard_00001").exists()
    first = (again / "shard_00000" / "lr.npy").stat().st_mtime_ns
    pack([Source(material, "made here")], again, segments=8, seed=3, **SMALL)  # longer: only what is missing
    assert (again / "shard_00000" / "lr.npy").stat().st_mtime_ns == first
    for shard in ("shard_00000", "shard_00001"):
        for name in ("hr.npy", "lr.npy"):
            assert (again / shard / name).read_bytes() == (packed / shard / name).read_bytes()


def test_pack_refuses_a_folder_of_other_settings(material: Path, packed: Path) -> None:
    with pytest.raises(SettingsError, match="other settings"):
        pack([Source(material, "made here")], packed, segments=7, seed=4, **SMALL)


def test_low_quality_belongs_to_its_clean_segment(material: Path, tmp_path: Path) -> None:
    order = OrderConfig(0.0, (0.2, 0.2), (0.0, 0.0, 1.0), gaussian_sigma=(0.0, 0.0), poisson_scale=(0.0, 0.0))
    mild = DegradationConfig(
        first=order,
        second=order,
        gaussian_sigma_step=0,
        poisson_scale_step=0,
        jpeg_quality=(95, 95),
        bits_per_frame=(1e7, 1e7),
        last_sinc_probability=0,
    )
    data = PackedDataset(pack([material], tmp_path, segments=8, degradation=mild, sharpen_weight=0.0, **SMALL))
    clean = np.stack([data.segment(i)[1] for i in range(8)]).astype(float)
    low = np.stack([data.segment(i)[0] for i in range(8)]).astype(float)
    small = clean.reshape(8, 3, 8, 4, 8, 4, 3).mean(axis=(3, 5))
    distance = np.array([[np.abs(a - b).mean() for b in small] for a in low])
    assert distance.argmin(axis=1).tolist() == list(range(8))


def test_a_steadied_pack_averages_the_degraded_frames_alone(
    material: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the frames before them, which are dropped then: the first ones of a segment have their neighbours too."""
    whole: list[np.ndarray] = []

    def watched(frames: np.ndarray, radius: int) -> np.ndarray:
        whole.append(frames)
        return steady_frames(frames, radius)

    steady_frames = packing.steady_frames
    monkeypatch.setattr(packing, "steady_frames", watched)
    steadied = PackedDataset(pack([Source(material, "made here")], tmp_path, segments=4, seed=3, steady=2, **SMALL))
    assert {len(frames) for frames in whole} == {3, 4}
    for index, plain in enumerate(PackedDataset(packed).segment(index) for index in range(4)):
        lr, hr = steadied.segment(index)
        assert np.array_equal(whole[index][-3:], plain[0]) and np.array_equal(hr, plain[1])
        assert np.array_equal(lr, steady_frames(whole[index], 2)[-3:])
    with pytest.raises(SettingsError, match="other settings"):
        pack([Source(material, "made here")], tmp_path, segments=4, seed=3, **SMALL)


def test_a_pack_from_before_steadying_goes_on(material: Path, tmp_path: Path) -> None:
    pack([material], tmp_path, segments=4, **SMALL)
    plan = json.loads((tmp_path / "meta.json").read_text())
    del plan["settings"]["steady"]
    (tmp_path / "meta.json").write_text(json.dumps(plan))
    pack([material], tmp_path, segments=8, **SMALL)
    assert len(PackedDataset(tmp_path)) == 8


def test_workers_write_the_same_bytes(material: Path, packed: Path, tmp_path: Path) -> None:
    pack([Source(material, "made here")], tmp_path, segments=7, seed=3, workers=2, **SMALL)
    for shard in ("shard_00000", "shard_00001"):
        assert (tmp_path / shard / "lr.npy").read_bytes() == (packed / shard / "lr.npy").read_bytes()


def test_sample_is_aligned_flipped_and_reversed_together(packed: Path) -> None:
    data = PackedDataset(packed)
    # Pixels that carry their own position: clean = (frame, row, column), low quality likewise in small pixels.
    t, y, x = np.mgrid[0:3, 0:32, 0:32]
    clean = np.stack([t, y // 4, x // 4], axis=-1).astype(np.uint8)[None]
    data._shards = {"fake": (clean, clean[:, :, ::4, ::4])}
    data._index = [("fake", 0)]
    lr, hr = data.sample(np.random.default_rng(0), 64, crop_hr=16, frames=2)
    assert lr.shape == (64, 2, 4, 4, 3) and hr.shape == (64, 2, 16, 16, 3)
    assert np.array_equal(hr[:, :, ::4, ::4], lr)
    assert len({tuple(item[0, 0, 0]) for item in lr}) > 20  # places, flips and directions vary
    directions = {tuple(int(v) for v in item[-1, -1, -1].astype(int) - item[0, 0, 0]) for item in lr}
    assert directions == {(t, y, x) for t in (-1, 1) for y in (-3, 3) for x in (-3, 3)}
    lr, _ = data.sample(np.random.default_rng(0), 32, crop_hr=16, frames=2, flip=False, reverse=False)
    assert {tuple(int(v) for v in item[-1, -1, -1].astype(int) - item[0, 0, 0]) for item in lr} == {(1, 3, 3)}


def test_sample_refuses_crops_that_do_not_fit(packed: Path) -> None:
    data = PackedDataset(packed)
    for crop, frames in ((18, 3), (64, 3), (16, 4)):
        with pytest.raises(SettingsError):
            data.sample(np.random.default_rng(0), 1, crop_hr=crop, frames=frames)


def test_dataset_takes_in_new_shards_and_ignores_unfinished_ones(material: Path, tmp_path: Path) -> None:
    out = pack([material], tmp_path, segments=4, **SMALL)
    data = PackedDataset(out)
    (out / "shard_00001.part").mkdir()
    assert data.refresh() == 4
    pack([material], out, segments=8, **SMALL)
    assert data.refresh() == 8


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no packed training folder"):
        PackedDataset(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        pack([tmp_path / "absent"], tmp_path / "out", segments=1)
    with pytest.raises(InputError, match="no videos"):
        pack([tmp_path], tmp_path / "out", segments=1)


def test_material_too_small_ends_with_an_error_instead_of_searching_for_ever(material: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no segment of 3 frames and 512 pixels"):
        pack([material], tmp_path, segments=4, **{**SMALL, "size": 512})


def test_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="multiple of scale"):
        PackSettings(segments=1, size=30)
    with pytest.raises(SettingsError, match="reduction"):
        PackSettings(segments=1, reduction=(0.5, 2.0))


def test_window_starts_where_asked_and_stops_at_the_end(material: Path) -> None:
    whole = sources.read_window(material / "pan.mp4", 0.0, 100)
    assert len(whole) == 16 and whole[0].shape == (96, 120, 3)
    late = sources.read_window(material / "pan.mp4", 1.0, 5)
    assert len(late) == 5
    nearest = int(np.argmin([np.abs(late[0].astype(int) - frame).mean() for frame in whole]))
    assert nearest in (10, 11)


def test_a_pack_made_on_a_device_is_the_same_but_for_rounding(material: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "segments": 4, "degradation": DegradationConfig(gaussian_probability=1.0)}
    plain, moved = (PackedDataset(pack([material], tmp_path / str(device), device=device, **settings))
                    for device in (None, "cpu"))
    for index in range(4):
        (lr, hr), (moved_lr, moved_hr) = plain.segment(index), moved.segment(index)
        assert np.array_equal(hr, moved_hr)
        assert np.abs(lr.astype(int) - moved_lr).mean() < 0.5
    command = ["degrade", str(material / "pan.mp4"), str(tmp_path / "out.mkv"), "--device", "nowhere"]
    assert cli.main(command) == cli.FAILED
    assert not (tmp_path / "out.mkv").exists()


def test_a_folder_of_numbered_pictures_is_a_clip(material: Path, tmp_path: Path) -> None:
    frames = sources.read_window(material / "pan.mp4", 0.0, 12)
    for clip in ("000", "001"):
        (tmp_path / clip).mkdir()
        for index, frame in enumerate(frames):
            cv2.imwrite(str(tmp_path / clip / f"{index}.png"), frame[..., ::-1])
    (tmp_path / "album").mkdir()
    for name in ("beach", "street"):
        cv2.imwrite(str(tmp_path / "album" / f"{name}.png"), frames[0])
    videos, photos = sources.list_material([tmp_path], without=[f"{tmp_path.name}/001"])
    assert [item.name for item in videos] == ["000"] and photos == []
    late = sources.read_window(videos[0].path, 1.0, 5)
    assert len(late) == 5 and all(np.array_equal(a, b) for a, b in zip(late, frames[7:], strict=True))
    with pytest.raises(SettingsError, match="'002'"):
        sources.list_material([tmp_path], without=["002"])
    assert len(PackedDataset(pack([tmp_path], tmp_path / "out", segments=4, without=["001"], **SMALL))) == 4


def test_frames_may_be_numbered_behind_a_name_and_be_of_any_kind(tmp_path: Path) -> None:
    wide = picture(48, 80)
    for clip, name in (("street", "frame_{:04d}.png"), ("sea", "im{}.tif"), ("hill", "Frame 00{}_x4.webp")):
        (tmp_path / clip).mkdir()
        for index in (8, 9, 10):
            cv2.imwrite(str(tmp_path / clip / name.format(index)), wide[:, index : index + 60])
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one" / "frame_0001.png"), wide)
    videos, _ = sources.list_material([tmp_path])
    assert [item.name for item in videos] == ["hill", "sea", "street"]
    frames = sources.read_window(tmp_path / "sea", 0.0, 5)
    assert all(np.array_equal(frame, wide[:, i : i + 60, ::-1]) for frame, i in zip(frames, (8, 9, 10), strict=True))
    cv2.imwrite(str(tmp_path / "street" / "frame_0011.png"), wide)
    with pytest.raises(VideoError, match="street' differ in size"):
        sources.read_window(tmp_path / "street", 1.0, 2)


@pytest.mark.parametrize(
    ("dataset", "folders", "expected"),
    [
        ("REDS", ["train/train_sharp/000", "train/train_sharp/001", "val/val_sharp/001"],
         {"001": "train/train_sharp/001", "val_001": "val/val_sharp/001"}),
        ("REDS", ["train_sharp/020", "train_sharp/021"], {"021": "train_sharp/021"}),
        ("REDS4", ["train_sharp/020", "train_sharp/021"], {"020": "train_sharp/020"}),
        ("SPMCS", ["car05_001/truth", "car05_001/input4", "hdclub/truth", "hdclub/input4"],
         {"car05_001": "car05_001/truth", "hdclub": "hdclub/truth"}),
        ("UDM10", ["archpeople/truth", "archpeople/blur4"], {"archpeople": "archpeople/truth"}),
        ("Vid4", ["GT/city", "BIx4/city", "BDx4/city"], {"city": "GT/city"}),
        ("folder", ["b", "a"], {"a": "a", "b": "b"}),
    ],
)
def test_training_takes_the_truth_of_published_sets(
    tmp_path: Path, dataset: str, folders: list[str], expected: dict[str, str]
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "frame_0001.png").touch()
    videos, photos = sources.list_material([Source(tmp_path, dataset=dataset)])
    assert {item.name: item.path.relative_to(tmp_path).as_posix() for item in videos} == expected and photos == []
    name = next(iter(expected))
    if len(expected) > 1:
        rest, _ = sources.list_material([Source(tmp_path, dataset=dataset)], without=[name])
        assert [item.name for item in rest] == [other for other in expected if other != name]


def test_a_set_is_packed_by_the_names_of_its_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = picture(40, 80)
    for clip in ("car05_001", "hdclub_003"):
        for part, step in (("truth", 1), ("input4", 4)):
            (tmp_path / "SPMCS" / clip / part).mkdir(parents=True)
            for index in range(8):
                frame = wide[::step, index : index + 60 : step]
                cv2.imwrite(str(tmp_path / "SPMCS" / clip / part / f"{index + 1:04d}.png"), frame)
    out = tmp_path / "out"
    small = ["--segments", "2", "--frames", "2", "--size", "32"]
    assert cli.main(["pack", str(out), f"{tmp_path / 'SPMCS'}=research", "--dataset", "SPMCS", *small]) == 0
    meta = json.loads((out / "meta.json").read_text())
    assert meta["videos"] == ["car05_001", "hdclub_003"] and meta["photos"] == []
    assert [(source["licence"], source["dataset"]) for source in meta["sources"]] == [("research", "SPMCS")]
    records = json.loads((out / "shard_00000" / "meta.json").read_text())["segments"]
    assert {record["source"] for record in records} == {"car05_001", "hdclub_003"}
    for dataset, said in (("VideoLQ", "VideoLQ has no truth to train on"), ("REDS", "no clips in the layout REDS"),
                          ("Vid5", "unknown data set 'Vid5'; choose one of")):
        command = ["pack", str(tmp_path / dataset), str(tmp_path / "SPMCS"), "--dataset", dataset, *small]
        assert cli.main(command) == cli.FAILED and said in capsys.readouterr().err


def test_training_packs_a_set_by_its_layout(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Source] = []

    def watched(given: list[Source], out: Path, **_: object) -> None:
        seen.extend(given)
        raise InputError("enough seen")

    monkeypatch.setattr("setevsr_core.training.data.pack", watched)
    command = ["train", "vae", "--out", str(tmp_path / "run"), "--lpips-weight", "0", "--device", "cpu"]
    assert cli.main([*command, "--data", str(tmp_path), "--dataset", "REDS"]) == cli.FAILED
    assert seen == [Source(tmp_path, dataset="REDS")]
    assert cli.main([*command, "--data", str(packed), "--dataset", "REDS"]) == cli.FAILED
    assert "is packed already: --dataset is for what is not" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["8.png", "16.png", "grey.png", "alpha.png", "plain.jpg", "turned.jpg", "ç ⚡.jpg"])
def test_pixels_of_photographs_are_those_of_opencv(tmp_path: Path, name: str) -> None:
    """8 bit, and the way up that the camera noted."""
    path, photo = tmp_path / name, picture(20, 30, 1)
    if name == "turned.jpg":
        tags = Image.Exif()
        tags[0x0112] = 6  # a quarter turn
        Image.fromarray(photo).save(path, exif=tags)
    else:
        grey = photo[..., 0]
        made = {"16": photo.astype(np.uint16) * 200 + 99, "grey": grey, "alpha": np.dstack([photo, grey])}
        assert cv2.imwrite(str(path), made.get(path.stem, photo))
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert expected is not None and (expected.shape == (30, 20, 3)) == (name == "turned.jpg")
    assert np.array_equal(sources.read_photo(path), expected[..., ::-1])


def test_unreadable_clip_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(VideoError, match="broken.mp4"):
        sources.read_window(tmp_path / "broken.mp4", 0.0, 5)


def test_cuts_are_found_and_motion_is_none() -> None:
    wide = picture(64, 120)
    shot = [wide[:, i : i + 100] for i in range(4)]
    other = [255 - wide[:, i : i + 100] // 3 for i in range(3)]
    assert sources.find_cuts(shot) == []
    assert sources.find_cuts(shot + other) == [4]


def test_filmed_photo_at_rest_is_the_reduced_crop() -> None:
    photo = picture(200, 240)
    still = sources.CameraPath(np.zeros((2, 2)), np.zeros(2), np.ones(2))
    film = sources.film_photo(photo, (120.0, 100.0), 2.0, still, 32)
    assert film.shape == (2, 32, 32, 3)
    expected = sources.crop_reduced([photo], 68, 88, 64, 32)[0]
    assert np.abs(film[0].astype(int) - expected).mean() < 1.0
    assert np.array_equal(film[0], film[1])


def test_filmed_photo_moves_by_the_shift_in_crop_pixels() -> None:
    photo = picture(260, 300)
    shift = np.array([[0.0, 0.0], [3.0, -2.0]])
    film = sources.film_photo(photo, (150.0, 130.0), 3.0, sources.CameraPath(shift, np.zeros(2), np.ones(2)), 32)
    still, moved = film.astype(int)
    assert np.abs(moved[2:, :-3] - still[:-2, 3:]).mean() < 2.0
    assert np.abs(moved - still).mean() > 5.0


def test_camera_paths_are_smooth() -> None:
    for seed in range(20):
        path = sources.draw_path(np.random.default_rng(seed), 9)
        assert path.shift.shape == (9, 2) and path.angle.shape == path.zoom.shape == (9,)
        assert np.abs(np.diff(path.shift, axis=0)).max() < 20
        assert np.abs(np.diff(path.zoom)).max() < 0.05 and (path.zoom > 0).all()


def test_sharpening_leaves_flat_areas_and_raises_contrast_at_edges() -> None:
    frame = np.full((1, 64, 64, 3), 100, np.uint8)
    assert np.array_equal(packing.sharpen(frame, 0.5), frame)
    frame[:, :, 32:] = 180
    sharp = packing.sharpen(frame, 0.5)
    assert sharp[0, 32, 31, 0] < 95 and sharp[0, 32, 32, 0] > 185
    assert packing.sharpen(frame, 0.0) is frame


def test_gradient_energy_of_known_pictures() -> None:
    assert sources.gradient_energy(np.full((8, 8, 3), 7, np.uint8)) == 0
    ramp = np.tile((np.arange(8) * 10).astype(np.uint8)[None, :, None], (8, 1, 3))
    assert sources.gradient_energy(ramp) == pytest.approx(5.0)  # 10 across, 0 down


def test_degrade_command_writes_a_small_video(material: Path, tmp_path: Path) -> None:
    out = tmp_path / "bad.mkv"
    assert cli.main(["degrade", str(material / "pan.mp4"), str(out), "--seed", "2", "--scale", "3", "--crf", "1"]) == 0
    frames = sources.read_window(out, 0.0, 100)
    assert len(frames) == 16 and frames[0].shape == (32, 40, 3)
    clean = np.stack([(frame * 255).round().byte().numpy() for frame in VideoReader(material / "pan.mp4")])
    expected = Degradation()(clean, 2, scale=3)
    # luma, since the file keeps colour at half the resolution
    assert np.abs(np.stack(frames).mean(axis=-1) - expected.mean(axis=-1)).mean() < 5


def test_degrade_command_keeps_frame_times_and_the_meaning_of_colours(tmp_path: Path) -> None:
    source, times = uneven_clip(tmp_path / "uneven.mkv")
    assert cli.main(["degrade", str(source), str(tmp_path / "times.mkv"), "--scale", "1"]) == 0
    assert stream_facts(tmp_path / "times.mkv")["times"] == times

    wide = ColourTags(matrix=9, primaries=9, transfer=16, full_range=True)
    with VideoWriter(tmp_path / "hdr.mkv", 24, (16, 24), colour=wide, depth=10) as writer:
        writer.write(gradient_frames(2, 16, 24))
    assert cli.main(["degrade", str(tmp_path / "hdr.mkv"), str(tmp_path / "colours.mp4"), "--scale", "1"]) == 0
    with VideoReader(tmp_path / "colours.mp4") as reader:
        assert (reader.tags, reader.bit_depth) == (wide, 8)


def test_degrade_command_refuses_bad_settings_and_its_own_input(material: Path, tmp_path: Path) -> None:
    clip = str(material / "pan.mp4")
    for arguments in ([clip, clip], [clip, str(tmp_path / "a.mp4"), "--scale", "0"], ["absent.mp4", "b.mp4"]):
        assert cli.main(["degrade", *arguments]) == cli.FAILED
    assert not list(tmp_path.iterdir())


def test_pack_command_records_rights(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    pack_command.add_parser(parser.add_subparsers())
    arguments = ["pack", str(tmp_path), f"{material}=CC0", "--segments", "3", "--frames", "2", "--size", "64"]
    args = parser.parse_args([*arguments, "--photo-share", "1"])
    assert pack_command.run(args) == 0
    assert "20 segments of 2 frames, 64 px" in capsys.readouterr().out
    assert json.loads((tmp_path / "meta.json").read_text())["sources"][0]["licence"] == "CC0"
