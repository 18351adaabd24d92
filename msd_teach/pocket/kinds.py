"""The twelve kinds of object: each a list of solids with their materials.

Every kind stands in the unit ball and faces +z, where it has something that no other side shows (a door, a
face, headlights, a porthole); its prompt's colour shows from everywhere, overhead too. `a` to `d` in [-1, 1]
are its proportions; 0 is the modal object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .shapes import (
    Points,
    blend,
    box,
    capsule,
    cone,
    cut,
    cylinder,
    disc,
    ellipsoid,
    gable,
    mirror,
    move,
    sphere,
    torus,
    turn_x,
    turn_z,
    wheel,
)

Parts = list[tuple[Tensor, str]]


def house(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    wide, deep, wall, roof = 0.60 + 0.06 * a, 0.55 + 0.06 * b, 0.36 + 0.04 * c, 0.50 + 0.07 * d
    front = deep + 0.02
    window = move(mirror(p), 0.36, wall - 0.62, front)
    return [
        (box(move(p, y=wall - 0.72), wide, wall, deep), "body"),
        (gable(move(p, y=2 * wall - 0.74), wide + 0.14, roof, deep + 0.10), "shade"),
        (box(move(p, y=-0.46, z=front), 0.15, 0.27, 0.03), "black"),
        (box(window, 0.15, 0.15, 0.02), "glow"),
        (disc(move(p, y=2 * wall - 0.56, z=deep + 0.11), 0.13, 0.02), "glow"),
        (box(move(p, 0.34, 2 * wall - 0.42, -0.2), 0.09, 0.27, 0.09), "metal"),
    ]


def car(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    long, wide, cabin, tyre = 0.82 + 0.06 * a, 0.45 + 0.04 * b, 0.24 + 0.03 * c, 0.19 + 0.02 * d
    q = mirror(p)
    wheels = torch.minimum(
        wheel(move(q, wide - 0.06, -0.36, 0.50), tyre, 0.11, 0.04),
        wheel(move(q, wide - 0.06, -0.36, -0.50), tyre, 0.11, 0.04),
    )
    return [
        (box(move(p, y=-0.17), wide, 0.22, long, 0.10), "body"),
        (box(move(p, y=cabin, z=-0.10), wide - 0.07, cabin, 0.42, 0.10), "glass"),
        (box(move(p, y=2 * cabin, z=-0.10), wide - 0.09, 0.07, 0.38, 0.06), "body"),
        (box(move(q, wide - 0.09, cabin, -0.12), 0.05, cabin, 0.06, 0.03), "body"),
        (wheels, "black"),
        (disc(move(q, wide - 0.15, -0.12, long), 0.13, 0.04), "glow"),
        (box(move(p, y=-0.27, z=long), 0.24, 0.07, 0.04), "black"),
    ]


def snowman(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    base, chest, head = 0.50 + 0.03 * a, 0.37 + 0.03 * b, 0.31 + 0.02 * c
    neck = move(p, y=0.31)
    face = move(p, y=0.55)
    scarf = torch.minimum(
        cylinder(neck, 0.31, 0.075, 0.05), box(turn_z(move(p, 0.15, 0.10, chest - 0.03), 10), 0.10, 0.20, 0.06, 0.03)
    )
    return [
        (sphere(move(p, y=-0.44), base), "body"),
        (sphere(move(p, y=0.10), chest), "body"),
        (sphere(face, head), "body"),
        (scarf, "ruby"),
        (sphere(move(mirror(face), 0.13, 0.06, head - 0.06), 0.075), "black"),
        (cone(turn_x(move(face, y=-0.04, z=head + 0.16), 90), 0.10, 0.015, 0.22 + 0.03 * d), "carrot"),
        (sphere(move(p, y=-0.26, z=base - 0.04), 0.10), "black"),
        (sphere(move(p, y=-0.54, z=base - 0.03), 0.10), "black"),
        (cylinder(move(p, y=0.55 + head), 0.15, 0.10), "black"),
    ]


def mug(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    r, tall, ring = 0.50 + 0.04 * a, 0.54 + 0.05 * b, 0.24 + 0.03 * c
    outside = cylinder(p, r, tall, 0.05)
    handle = cut(torus(move(p, x=r), ring, 0.075 + 0.01 * d), cylinder(p, r - 0.04, 2.0))
    skin = cut(torch.maximum(cylinder(p, r + 0.012, tall), -p[2]), cylinder(p, r - 0.03, 2.0))
    eyes = disc(move(mirror(p), 0.13, 0.10), 0.06, 2.0)
    mouth = cut(disc(move(p, y=-0.03), 0.20, 2.0), box(move(p, y=0.22), 0.5, 0.25, 3.0))
    return [
        (cut(outside, cylinder(move(p, y=0.2), r - 0.09, tall)), "body"),
        (handle, "body"),
        (torch.maximum(skin, disc(p, 0.35, 2.0)), "cream"),
        (torch.maximum(skin - 0.01, torch.minimum(eyes, mouth)), "black"),
        (cylinder(p, r - 0.08, tall - 0.16), "wood"),
    ]


def chair(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    wide, back, arm, leg = 0.52 + 0.05 * a, 0.54 + 0.06 * b, 0.17 + 0.03 * c, 0.13 + 0.03 * d
    q = mirror(p)
    legs = torch.minimum(
        cylinder(move(q, wide - 0.05, -0.62, 0.36), 0.075, leg),
        cylinder(move(q, wide - 0.05, -0.62, -0.36), 0.075, leg),
    )
    return [
        (box(move(p, y=-0.36), wide, 0.16, 0.46, 0.05), "body"),
        (box(move(p, y=back - 0.38, z=-0.38), wide + 0.02, back, 0.13, 0.10), "body"),
        (box(move(q, wide + 0.02, arm - 0.30), 0.11, arm + 0.06, 0.44, 0.09), "body"),
        (box(move(p, y=-0.17, z=0.10), wide - 0.12, 0.10, 0.34, 0.06), "cream"),
        (box(move(p, y=back - 0.22, z=-0.24), wide - 0.17, back - 0.24, 0.06, 0.05), "cream"),
        (legs, "wood"),
    ]


def tree(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    low, middle, high, trunk = 0.62 + 0.06 * a, 0.50 + 0.05 * b, 0.36 + 0.04 * c, 0.13 + 0.02 * d
    cream, ruby = torch.full_like(p[0], 9.0), torch.full_like(p[0], 9.0)
    for x, y, z in ((-0.30, -0.42, 0.48), (0.22, -0.08, 0.40), (-0.10, 0.22, 0.30)):
        cream = torch.minimum(cream, sphere(move(p, x, y, z), 0.12))
    for x, y, z in ((0.24, -0.46, 0.50), (-0.20, -0.10, 0.40), (0.14, 0.26, 0.26)):
        ruby = torch.minimum(ruby, sphere(move(p, x, y, z), 0.12))
    return [
        (cone(move(p, y=-0.37), low, 0.20, 0.25), "body"),
        (cone(move(p, y=0.03), middle, 0.14, 0.25), "body"),
        (cone(move(p, y=0.45), high, 0.02, 0.30), "body"),
        (cylinder(move(p, y=-0.74), trunk, 0.18), "wood"),
        (sphere(move(p, y=0.78), 0.12), "glow"),
        (cream, "cream"),
        (ruby, "ruby"),
    ]


def rocket(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    r, fin, tail, ring = 0.40 + 0.03 * a, 0.20 + 0.03 * b, 0.24 + 0.03 * c, 0.24 + 0.02 * d
    hull = torch.maximum(ellipsoid(move(p, y=0.05), 0.42, 0.92, 0.42) + 0.40 - r, -p[1] - 0.58)
    side = box(turn_z(move(mirror(p), r + 0.06, -0.52), -24), fin, tail, 0.06, 0.03)
    rear = box(turn_x(move(p, y=-0.52, z=-r - 0.06), -24), 0.06, tail, fin, 0.03)
    window = move(p, y=0.20, z=r - 0.03)
    return [
        (hull, "body"),
        (torch.minimum(side, rear), "shade"),
        (disc(window, ring, 0.07), "metal"),
        (disc(window, ring - 0.07, 0.09), "glass"),
        (box(move(p, y=-0.32, z=r - 0.04), 0.16, 0.17, 0.05), "black"),
        (cone(move(p, y=-0.70), 0.10, 0.24, 0.14), "carrot"),
    ]


def duck(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    head, wing, beak, perk = 0.33 + 0.02 * a, 0.02 * b, 0.02 * c, 8 * d
    skull = move(p, y=0.32, z=0.30)
    trunk = blend(ellipsoid(move(p, y=-0.32, z=-0.06), 0.52, 0.40, 0.66), sphere(skull, head), 0.22)
    tail = move(p, y=-0.08, z=-0.66)
    lift = torch.deg2rad(-40 - perk)
    y, z = lift.cos() * tail[1] + lift.sin() * tail[2], lift.cos() * tail[2] - lift.sin() * tail[1]
    side = move(mirror(p), 0.47, -0.28 + wing, -0.12)
    return [
        (blend(trunk, ellipsoid((tail[0], y, z), 0.20, 0.14, 0.26), 0.15), "body"),
        (ellipsoid(side, 0.12, 0.22, 0.34), "shade"),
        (ellipsoid(move(skull, y=-0.08 + beak, z=head + 0.06), 0.20, 0.08, 0.20), "carrot"),
        (sphere(move(mirror(skull), 0.14, 0.10, head - 0.08), 0.085), "cream"),
        (sphere(move(mirror(skull), 0.145, 0.11, head - 0.02), 0.055), "black"),
    ]


def lamp(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    foot, shade, neck = 0.42 + 0.04 * a, 0.46 + 0.04 * b, 0.03 * c
    head = turn_x(move(p, y=0.42 + neck, z=0.10), 72)
    hood = cut(cone(head, 0.19, shade, 0.32), cone(move(head, y=0.06), 0.13, shade - 0.05, 0.32))
    return [
        (cylinder(move(p, y=-0.78), foot, 0.09, 0.04), "body"),
        (capsule(p, (0.0, -0.72, 0.0), (0.0, -0.20, -0.32), 0.065), "metal"),
        (capsule(p, (0.0, -0.20, -0.32), (0.0, 0.35, -0.12), 0.065), "metal"),
        (sphere(move(p, y=-0.20, z=-0.32), 0.10), "shade"),
        (hood, "body"),
        (sphere(move(head, y=0.10), 0.30 + 0.02 * d), "glow"),
    ]


def boat(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    cabin, funnel, wide = 0.27 + 0.03 * a, 0.17 + 0.02 * b, 0.33 + 0.03 * c
    bowl = ellipsoid(move(p, y=0.04), 0.50, 0.62, 0.98)
    hull = torch.maximum(bowl, (p[1] + 0.20).abs() - 0.28)
    deck = torch.maximum(bowl + 0.05, (p[1] + 0.10).abs() - 0.205)
    house = move(p, y=0.05 + cabin, z=-0.02)
    top = 0.07 + 2 * cabin
    return [
        (cut(hull, torch.maximum(bowl + 0.06, (p[1] - 0.2).abs() - 0.14)), "body"),
        (deck, "wood"),
        (box(house, wide, cabin, 0.30, 0.04), "cream"),
        (box(move(house, y=0.09, z=0.30), wide - 0.07, 0.11, 0.02), "black"),
        (box(move(p, y=top, z=-0.02), wide + 0.06, 0.05, 0.36, 0.03), "body"),
        (cylinder(move(p, y=top + 0.15, z=-0.10), funnel, 0.16 + 0.03 * d), "shade"),
        (cylinder(move(p, y=top + 0.34, z=-0.10), funnel + 0.03, 0.05), "black"),
        (torus(turn_x(move(p, y=-0.09, z=0.90), 25), 0.13, 0.055), "cream"),
    ]


def robot(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    wide, head, arm, leg = 0.40 + 0.04 * a, 0.36 + 0.03 * b, 0.12 + 0.015 * c, 0.14 + 0.015 * d
    q = mirror(p)
    face = move(p, y=0.46, z=0.30)
    return [
        (box(move(p, y=-0.18), wide, 0.34, 0.28, 0.06), "body"),
        (box(move(p, y=0.46), head, 0.25, 0.30, 0.06), "body"),
        (box(move(q, wide + arm + 0.02, -0.16), arm, 0.32, 0.14, 0.08), "shade"),
        (box(move(q, 0.20, -0.70), leg, 0.24, 0.18, 0.05), "shade"),
        (cylinder(move(p, y=0.78), 0.035, 0.10), "metal"),
        (sphere(move(p, y=0.88), 0.09), "glow"),
        (box(face, head - 0.08, 0.16, 0.02), "black"),
        (disc(move(mirror(face), 0.13, 0.02, 0.02), 0.085, 0.02), "glow"),
        (box(move(p, y=-0.14, z=0.28), 0.22, 0.16, 0.02), "glass"),
        (wheel(move(q, head, 0.46), 0.10, 0.07), "metal"),
    ]


def bear(p: Points, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Parts:
    head, ear, belly, limb = 0.39 + 0.02 * a, 0.15 + 0.02 * b, 0.02 * c, 0.17 + 0.015 * d
    q = mirror(p)
    skull = move(p, y=0.40, z=0.04)
    trunk = ellipsoid(move(p, y=-0.34), 0.46, 0.47, 0.42) - belly
    body = blend(trunk, sphere(skull, head), 0.10)
    body = torch.minimum(body, sphere(move(q, 0.30, 0.72, 0.0), ear))
    body = blend(body, capsule(q, (0.38, -0.12, 0.06), (0.62, -0.30, 0.22), limb - 0.03), 0.05)
    body = blend(body, capsule(q, (0.26, -0.64, 0.10), (0.34, -0.74, 0.40), limb), 0.05)
    return [
        (body, "body"),
        (ellipsoid(move(p, y=-0.30, z=0.26), 0.28, 0.30, 0.20) - belly, "cream"),
        (ellipsoid(move(skull, y=-0.12, z=head - 0.06), 0.20, 0.15, 0.16), "cream"),
        (ellipsoid(move(skull, y=-0.06, z=head + 0.07), 0.085, 0.065, 0.065), "black"),
        (sphere(move(mirror(skull), 0.15, 0.08, head - 0.06), 0.07), "black"),
        (sphere(move(mirror(p), 0.30, 0.72, ear - 0.06), 0.08), "cream"),
    ]


KINDS = {kind.__name__: kind for kind in (house, car, snowman, mug, chair, tree, rocket, duck, lamp, boat, robot, bear)}
