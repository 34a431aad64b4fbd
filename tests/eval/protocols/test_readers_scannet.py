"""The exported ScanNet layout on tiny copies."""

import numpy as np
import pytest
import torch

from corpora.scans import pose, wall, write_matrix, write_scannet
from relief3d.core.errors import InputError
from relief3d.eval.protocols.surfaces.readers_scannet import (
    find_scans,
    read_sensor_depth,
    scan_mesh,
    scan_reference,
    scan_scene,
    scan_views,
)
from relief3d.eval.protocols.surfaces.surface_rules import sensor_depth


def test_frames_intrinsics_and_depth(tmp_path):
    lost = torch.full((4, 4), -torch.inf)
    depth = np.full((480, 640), 3.25)
    depth[0, :] = 0
    depth[1, :] = 10.0  # the limit itself is too far
    depth[2, :] = 11.0
    write_scannet(tmp_path, poses={0: pose(), 2: lost, 10: pose(0.5)}, depths={10: depth})
    (scan,) = find_scans(tmp_path)
    assert scan.name == "scene0707_00" and scan.reference is not None
    scene = scan_scene(scan)
    assert [v.name for v in scene.views] == ["0.jpg", "10.jpg"] and scene.metric
    camera = scene.views[0].camera
    assert (camera.width, camera.height) == (64, 48)
    assert camera.K[0].tolist() == [50.0, 0.0, 32.0] and camera.K[1].tolist() == [0.0, 50.0, 24.0]
    assert tuple(scene.views[0].load_image().shape) == (3, 48, 64)
    assert scene.views[1].camera.centre.tolist() == [0.5, 0.0, 0.0]
    assert all(v.depth is None for v in scene.views)
    views = scan_views(scan)
    assert len(views) == 2 and views[0].camera.K[0].tolist() == [500.0, 0.0, 320.0]
    values = sensor_depth(views[1])
    assert float(values[5, 5]) == pytest.approx(3.25)
    assert float(values[:3].max()) == 0.0


def test_reference_data(tmp_path):
    write_scannet(tmp_path)
    (scan,) = find_scans(tmp_path)
    assert torch.allclose(scan_mesh(scan).vertices, wall().vertices)
    mesh, grid = scan_reference(scan)
    assert mesh.vertices.shape[0] == 441
    # World x = 0.49 lies between voxels 19 (free) and 20 (occluded); 0.3 between free ones.
    points = torch.tensor([[0.3, 0.0, 2.0], [0.49, 0.0, 2.0], [0.4, 0.0, 2.0]])
    assert grid.visible(points).tolist() == [True, False, True]


def test_the_list_of_scans_decides(tmp_path):
    for name in ("scene0707_00", "scene0708_00"):
        write_scannet(tmp_path, name)
    assert len(find_scans(tmp_path)) == 2
    (tmp_path / "scannetv2_test.txt").write_text("scene0708_00\n")
    assert [s.name for s in find_scans(tmp_path)] == ["scene0708_00"]
    (tmp_path / "scannetv2_test.txt").write_text("scene0708_00\nscene0800_00\n")
    with pytest.raises(InputError, match="scene0800_00"):
        find_scans(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="no exported ScanNet scan"):
        find_scans(tmp_path)
    packed = tmp_path / "scans" / "scene0000_00"
    packed.mkdir(parents=True)
    (packed / "scene0000_00.sens").write_bytes(b"")
    with pytest.raises(InputError, match=r"only packed \.sens files.*SensReader"):
        find_scans(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        find_scans(tmp_path / "nowhere")
    folder = write_scannet(tmp_path, reference=False)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match="TransformerFusion release"):
        scan_reference(scan)
    (folder / "scene0707_00_vh_clean_2.ply").unlink()
    with pytest.raises(InputError, match="vh_clean_2"):
        scan_mesh(scan)
    (folder / "depth" / "1.png").unlink()
    with pytest.raises(InputError, match="lacks frame 1"):
        scan_views(scan)
    (folder / "intrinsic" / "intrinsic_color.txt").unlink()
    with pytest.raises(InputError, match="intrinsic_color"):
        scan_scene(scan)


def test_damaged_files_are_named(tmp_path):
    folder = write_scannet(tmp_path, poses={0: torch.full((4, 4), torch.nan)})
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match="no frame with a valid pose"):
        scan_scene(scan)
    write_matrix(folder / "pose" / "0.txt", 2 * torch.eye(4))
    with pytest.raises(InputError, match=r"0\.txt.*pose"):
        scan_scene(scan)
    (folder / "pose" / "0.txt").write_text("1 2 3\n")
    with pytest.raises(InputError, match="3 numbers"):
        scan_scene(scan)
    (folder / "pose" / "0.txt").write_text("a " * 16)
    with pytest.raises(InputError, match="text"):
        scan_scene(scan)
    np.save(tmp_path / "groundtruth" / scan.name / "occlusion_mask.npy", np.zeros((2, 2)))
    with pytest.raises(InputError, match="three"):
        scan_reference(scan)
    (tmp_path / "groundtruth" / scan.name / "world2grid.txt").unlink()
    with pytest.raises(InputError, match="world2grid"):
        scan_reference(scan)


def test_a_blind_frame_is_no_error_but_a_wrong_size_is(tmp_path):
    write_scannet(tmp_path, depths={0: np.zeros((480, 640)), 1: np.full((24, 32), 2.0)})
    (scan,) = find_scans(tmp_path)
    first, second = scan_views(scan)
    assert float(sensor_depth(first).max()) == 0.0
    with pytest.raises(InputError, match="32 x 24"):
        sensor_depth(second)
    with pytest.raises(InputError, match="no valid pixels"):
        read_sensor_depth(scan.folder / "depth" / "0.png", 0.001, 10.0)
