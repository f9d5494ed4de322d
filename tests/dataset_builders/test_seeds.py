from dataset_builders.seeds import seed_of


def test_seed_is_a_hash_of_its_names() -> None:
    # printf 0/coco/7 | sha256sum | cut -c1-16
    assert seed_of(0, "coco", "7") == 0x9BA668FD7673E7BB
    assert len({seed_of(a, b) for a in range(20) for b in range(20)}) == 400
