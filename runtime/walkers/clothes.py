"""Who walks: a random person's build, face, hair and clothes as one mesh."""

import numpy as np

from runtime.walkers.body import BONES, Body, MeshBuilder, chained, hanging

# Half width, depth in front and behind over the height of the bare body, in metres (position, x, z, w, f, b).
_TORSO = [(0.85, 0, 0, 0.10, 0.07, 0.08), (0.90, 0, -0.005, 0.155, 0.095, 0.115), (0.96, 0, -0.01, 0.170, 0.105, 0.130),
          (1.05, 0, -0.01, 0.148, 0.105, 0.100), (1.12, 0, -0.01, 0.140, 0.105, 0.090),
          (1.22, 0, -0.015, 0.153, 0.115, 0.100), (1.31, 0, -0.02, 0.168, 0.125, 0.112),
          (1.37, 0, -0.02, 0.178, 0.110, 0.110), (1.415, 0, -0.02, 0.165, 0.090, 0.100),
          (1.45, 0, -0.02, 0.125, 0.070, 0.080), (1.475, 0, -0.018, 0.085, 0.060, 0.065),
          (1.51, 0, -0.015, 0.055, 0.052, 0.055)]
_NECK = [(1.42, 0, -0.02, 0.062, 0.058, 0.060), (1.50, 0, -0.01, 0.055, 0.052, 0.056),
         (1.60, 0, 0.0, 0.052, 0.050, 0.060)]
_HEAD = [(1.512, 0, 0.02, 0.012, 0.030, 0.020), (1.525, 0, 0.012, 0.036, 0.074, 0.030),
         (1.55, 0, 0.01, 0.051, 0.087, 0.045), (1.58, 0, 0.01, 0.063, 0.089, 0.075),
         (1.615, 0, 0.01, 0.071, 0.088, 0.095), (1.645, 0, 0.01, 0.074, 0.086, 0.104),
         (1.68, 0, 0.01, 0.076, 0.091, 0.108), (1.71, 0, 0.008, 0.072, 0.082, 0.100),
         (1.735, 0, 0.0, 0.057, 0.062, 0.078), (1.752, 0, -0.005, 0.03, 0.03, 0.04)]
_ARM = [(1.468, 0.160, -0.015, 0.016, 0.020, 0.020), (1.450, 0.166, -0.015, 0.036, 0.042, 0.042),
        (1.40, 0.180, -0.015, 0.053, 0.056, 0.054), (1.33, 0.180, -0.015, 0.047, 0.052, 0.050),
        (1.22, 0.180, -0.015, 0.042, 0.045, 0.044), (1.13, 0.178, -0.015, 0.038, 0.038, 0.040),
        (1.06, 0.178, -0.015, 0.040, 0.040, 0.040), (0.95, 0.178, -0.015, 0.032, 0.032, 0.032),
        (0.875, 0.178, -0.015, 0.027, 0.024, 0.024), (0.85, 0.178, -0.015, 0.024, 0.026, 0.024)]
_HAND = [(0.885, 0.178, -0.015, 0.022, 0.022, 0.022), (0.85, 0.178, -0.013, 0.019, 0.034, 0.030),
         (0.80, 0.176, -0.010, 0.019, 0.043, 0.036), (0.76, 0.172, -0.008, 0.017, 0.036, 0.036),
         (0.70, 0.166, -0.006, 0.013, 0.026, 0.028)]
_THUMB = [(0.85, 0.172, 0.012, 0.014, 0.014, 0.014), (0.79, 0.166, 0.036, 0.012, 0.013, 0.013),
          (0.765, 0.163, 0.044, 0.008, 0.008, 0.008)]
_LEG = [(0.99, 0.088, 0, 0.040, 0.050, 0.060), (0.94, 0.092, 0, 0.078, 0.085, 0.100),
        (0.86, 0.092, 0, 0.084, 0.090, 0.094), (0.72, 0.090, 0, 0.074, 0.080, 0.076),
        (0.56, 0.088, 0.004, 0.055, 0.060, 0.056), (0.495, 0.088, 0.006, 0.052, 0.056, 0.050),
        (0.43, 0.088, 0, 0.049, 0.048, 0.056), (0.34, 0.088, -0.006, 0.050, 0.046, 0.060),
        (0.22, 0.088, -0.012, 0.037, 0.038, 0.042), (0.11, 0.088, -0.018, 0.031, 0.034, 0.036),
        (0.06, 0.088, -0.018, 0.031, 0.034, 0.036)]
_SHOE = [(-0.085, 0.088, 0.045, 0.026, 0.045, 0.035), (-0.06, 0.088, 0.05, 0.036, 0.055, 0.05),
         (0.0, 0.088, 0.05, 0.038, 0.055, 0.05), (0.06, 0.088, 0.04, 0.044, 0.035, 0.04),
         (0.12, 0.089, 0.035, 0.045, 0.022, 0.035), (0.165, 0.089, 0.03, 0.032, 0.016, 0.03)]

_SKINS = np.array([(0.72, 0.80, 0.94), (0.60, 0.71, 0.90), (0.50, 0.63, 0.85), (0.40, 0.55, 0.78), (0.30, 0.44, 0.66),
                   (0.22, 0.33, 0.52), (0.16, 0.24, 0.39), (0.12, 0.17, 0.28)])
_HAIRS = np.array([(0.05, 0.05, 0.06), (0.07, 0.09, 0.13), (0.10, 0.16, 0.26), (0.20, 0.32, 0.48), (0.40, 0.60, 0.76),
                   (0.15, 0.25, 0.52), (0.55, 0.56, 0.58), (0.85, 0.85, 0.85)])
_FABRICS = np.array([(0.06, 0.06, 0.07), (0.12, 0.12, 0.12), (0.25, 0.25, 0.26), (0.5, 0.5, 0.5), (0.9, 0.9, 0.9),
                     (0.30, 0.16, 0.10), (0.45, 0.26, 0.15), (0.58, 0.42, 0.30), (0.22, 0.34, 0.42),
                     (0.55, 0.70, 0.78), (0.20, 0.32, 0.26), (0.12, 0.10, 0.40), (0.15, 0.15, 0.70)])


def fabric(rng):
    """A colour for clothes, BGR 0..1: mostly sober, one in four is any colour."""
    if rng.random() < 0.25:
        hue, strength, light = rng.uniform(0, 6), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.95)
        wheel = np.clip(np.abs((hue + np.array([4, 2, 0])) % 6 - 3) - 1, 0, 1)
        return light * (1 - strength * (1 - wheel))
    return np.clip(_FABRICS[rng.integers(len(_FABRICS))] * rng.uniform(0.8, 1.2) + rng.normal(0, 0.02, 3), 0.02, 0.98)


def _pattern(rng, base):
    """Function from the middles of quads to colours: plain, stripes, checks, blocks or blotches."""
    second, kind = fabric(rng), rng.choice(["plain", "hoops", "stripes", "checks", "blocks", "blotches"],
                                           p=[0.55, 0.12, 0.06, 0.1, 0.09, 0.08])
    period, level, shift = rng.uniform(0.05, 0.16), rng.uniform(1.1, 1.35), rng.uniform(0, 6, 4)

    def paint(middles):
        x, y, z = middles.T * 2 * np.pi / period
        mixes = {"plain": 0 * x, "hoops": np.sin(y) > 0.2, "stripes": np.sin(x + z) > 0.5,
                 "checks": (np.sin(y) > 0.3) * 0.5 + (np.sin(x + z) > 0.3) * 0.5, "blocks": middles[:, 1] > level,
                 "blotches": np.sin(1.3 * x + shift[0]) + np.sin(y + shift[1]) + np.sin(z - 0.7 * y + shift[2]) > 0.6}
        mix = np.asarray(mixes[kind], np.float64)[:, None]
        return base * (1 - mix) + second * mix
    return paint


def _split(inside, colour, other):
    """Colour function: `colour` (BGR or function) where inside(middles), else `other`."""
    def paint(middles):
        def shades(of):
            return of(middles) if callable(of) else np.broadcast_to(of, middles.shape)
        return np.where(inside(middles)[:, None], shades(colour), shades(other))
    return paint


def _mirrored(rows, side):
    return [(row[0], row[1] * side, *row[2:]) for row in rows]


def _scaled(rows, factor, x=1.0):
    """Widths and depths times a factor (a number, or a function of the position)."""
    grow = factor if callable(factor) else lambda position: factor
    return [(p, cx * x, cz, w * grow(p), f * grow(p), b * grow(p)) for p, cx, cz, w, f, b in rows]


def random_person(rng, facet=0.035):
    """A Body with random build, face, hair and clothes. facet: edge of the quads in metres."""
    child = rng.random() < 0.1
    female = rng.random() < 0.5
    girth = np.clip(rng.normal(1.02, 0.11), 0.85, 1.4)
    mesh = MeshBuilder(facet, rng)
    skin = np.clip(_SKINS[rng.integers(len(_SKINS))] * rng.uniform(0.9, 1.08), 0, 1)
    look = {"skin": skin, "hair": _HAIRS[rng.choice(len(_HAIRS), p=[0.28, 0.22, 0.18, 0.1, 0.08, 0.04, 0.06, 0.04])],
            "female": female and not child, "child": child, "girth": girth}
    _head(mesh, rng, look)
    _dress(mesh, rng, look)
    height = rng.uniform(1.05, 1.5) if child else rng.normal(1.65 if female else 1.77, 0.07)
    scales = np.full(len(BONES), height / 1.75)
    legs, arms, head = rng.normal(0.92 if child else 1.0, 0.03), rng.normal(1.0, 0.03), rng.normal(1.0, 0.03)
    for index, bone in enumerate(BONES):
        if bone.endswith(("thigh", "shin", "foot")):
            scales[index] *= legs
        elif bone.endswith(("arm", "hand")):
            scales[index] *= arms * (0.95 if female else 1.0)
        elif bone == "head":
            # Heads differ less in size than bodies do.
            scales[index] *= head * (1.75 / height) ** 0.7
    face = np.array([(0, 1.605, 0.122), (0.032, 1.642, 0.088), (-0.032, 1.642, 0.088), (0.078, 1.628, -0.002),
                     (-0.078, 1.628, -0.002)])
    return Body(mesh.finish(), face, scales)


def _face_depth(x, y):
    """z of the face at (x, y) on the upright body."""
    table = np.array(_HEAD)
    width, front, centre = [np.interp(y, table[:, 0], table[:, column]) for column in (3, 4, 2)]
    return centre + front * np.sqrt(np.clip(1 - (x / width) ** 2, 0, 1))


def _spot(mesh, x, y, width, height, colour, lift=0.002, bias=0.02, part="head"):
    """A lens-shaped spot on the face."""
    across = np.linspace(1, -1, 5)
    half = height / 2 * np.sqrt(np.clip(1.15 - across ** 2, 0.1, 1))
    rows = [np.stack([x + across * width / 2, y + sign * half], -1) for sign in (-1, 1)]
    points = [np.column_stack([row, _face_depth(row[:, 0], row[:, 1]) + lift]) for row in rows]
    mesh.grid(part, np.array(points), "head", colour, bias=bias)


def _head(mesh, rng, look):
    skin, hair = look["skin"], look["hair"]
    beard = not look["female"] and not look["child"] and rng.random() < 0.35
    jaw = skin * 0.35 + hair * 0.65

    def bearded(m):
        return (m[:, 1] < 1.592) & (m[:, 2] > -0.02) & beard
    cheeks = _split(bearded, jaw, skin)
    mesh.tube("head", _NECK, chained(("head", "neck", "chest"), 0.03), skin * 0.95)
    mesh.facet *= 0.75
    mesh.tube("head", _HEAD, "head", cheeks, gloss=0.15)
    nose = [(1.592, 0, 0.085, 0.008, 0.012, 0.02), (1.600, 0, 0.09, 0.017, 0.028, 0.03),
            (1.606, 0, 0.09, 0.014, 0.031, 0.03), (1.625, 0, 0.088, 0.010, 0.021, 0.03),
            (1.65, 0, 0.088, 0.008, 0.010, 0.03)]
    mesh.tube("head", nose, "head", skin * 0.97, gloss=0.2)
    mesh.facet /= 0.75
    brow = np.minimum(hair, skin) * 0.8
    for side in (1, -1):
        _spot(mesh, 0.032 * side, 1.643, 0.034, 0.020, skin * 0.72, bias=0.015)
        _spot(mesh, 0.032 * side, 1.642, 0.027, 0.012, (0.85, 0.86, 0.87), 0.003)
        _spot(mesh, 0.032 * side, 1.642, 0.012, 0.012, (0.06, 0.08, 0.10), 0.004, 0.025)
        _spot(mesh, 0.034 * side, 1.662, 0.042, 0.008, brow, 0.003)
        _spot(mesh, 0.008 * side, 1.596, 0.008, 0.006, skin * 0.4, 0.012)
        ear = [(1.598, 0.073, -0.004, 0.008, 0.01, 0.01), (1.615, 0.076, -0.004, 0.012, 0.016, 0.016),
               (1.64, 0.080, -0.006, 0.013, 0.018, 0.020), (1.66, 0.078, -0.008, 0.008, 0.01, 0.012)]
        mesh.tube("head", _mirrored(ear, side), "head", skin * np.array([0.88, 0.9, 1.0]))
    lips = skin * np.array([0.75, 0.72, 0.9]) if not look["female"] else skin * np.array([0.6, 0.5, 0.95])
    _spot(mesh, 0, 1.565, 0.052, 0.016, lips, 0.003)
    _spot(mesh, 0, 1.566, 0.046, 0.004, skin * 0.3, 0.004, 0.025)
    if rng.random() < 0.15:
        dark = rng.random() < 0.5
        for side in (1, -1):
            _spot(mesh, 0.034 * side, 1.640, 0.052, 0.036, (0.05, 0.05, 0.05), 0.012, 0.03)
            if not dark:
                _spot(mesh, 0.034 * side, 1.640, 0.044, 0.028, skin * 0.9, 0.013, 0.034)
                _spot(mesh, 0.033 * side, 1.641, 0.018, 0.010, (0.08, 0.08, 0.1), 0.014, 0.038)
        _spot(mesh, 0, 1.645, 0.02, 0.006, (0.05, 0.05, 0.05), 0.018, 0.03)
    _hair(mesh, rng, look)


def _hair(mesh, rng, look):
    long_haired = rng.random() < (0.7 if look["female"] else 0.08)
    style = rng.choice(["long", "bun", "scarf"], p=[0.6, 0.3, 0.1]) if long_haired else \
        rng.choice(["short", "bald", "cap", "beanie"], p=[0.68, 0.12, 0.12, 0.08])
    hair, cloth = look["hair"], fabric(rng)
    colour = {"cap": cloth, "beanie": cloth, "scarf": cloth}.get(style, hair)
    brow = {"long": 1.695, "bun": 1.70, "short": 1.70, "bald": 1.70, "cap": 1.69, "beanie": 1.68, "scarf": 1.69}[style]
    brow += rng.uniform(-0.01, 0.01)
    nape = {"long": 1.54, "bun": 1.57, "short": 1.57, "bald": 1.58, "cap": 1.62, "beanie": 1.60, "scarf": 1.5}[style]
    side = {"long": 1.60, "bun": 1.65, "short": 1.645, "bald": 1.65, "cap": 1.66, "beanie": 1.64, "scarf": 1.5}[style]

    def covered(m):
        ahead = np.clip(m[:, 2] / 0.07, -1, 1)
        line = np.where(ahead > 0, side + (brow - side) * np.abs(ahead) ** 0.6, side + (nape - side) * -ahead)
        return m[:, 1] > line
    if style == "bald":
        if rng.random() < 0.5:
            shell = _scaled(_HEAD, 1.02)
            mesh.tube("hair", shell, "head", colour, bias=0.01,
                      keep=lambda m: covered(m) & (m[:, 1] < 1.70) & (m[:, 2] < 0.02))
        return
    thick = {"long": 1.13, "bun": 1.06, "cap": 1.08, "beanie": 1.12, "scarf": 1.14}.get(style, rng.uniform(1.04, 1.14))
    # Thick on the crown and at the back, thin at the temples.
    shell = [(p + 0.018 * (p > 1.73) * (thick - 1) / 0.1, x, z, w * thick, f * (1 + (thick - 1) * 0.7), b * thick)
             for p, x, z, w, f, b in _HEAD]
    mesh.tube("hair", shell, "head", colour, bias=0.005, keep=covered, wrinkles=0.002, gloss=0.2)
    if style in ("long", "scarf"):
        end = rng.uniform(1.28, 1.48)
        fall = [(end, 0, -0.09, 0.05, 0.02, 0.03), (end + 0.04, 0, -0.09, 0.085, 0.03, 0.04),
                (1.52, 0, -0.05, 0.085, 0.04, 0.07), (1.62, 0, -0.02, 0.083, 0.03, 0.095),
                (1.68, 0, 0, 0.06, 0.02, 0.09)]
        mesh.tube("hair", fall, chained(("head", "neck", "chest"), 0.05), colour, wrinkles=0.006, gloss=0.15)
    if style == "scarf":
        collar = [(1.43, 0, 0, 0.11, 0.09, 0.10), (1.48, 0, 0, 0.085, 0.085, 0.085), (1.54, 0, 0, 0.07, 0.08, 0.08)]
        mesh.tube("hair", collar, chained(("head", "neck", "chest"), 0.03), colour, wrinkles=0.006)
    if style == "bun":
        y, z = (1.72, -0.11) if rng.random() < 0.5 else (1.64, -0.135)
        ball = [(y - 0.045, 0, z, 0.01, 0.01, 0.01), (y - 0.02, 0, z, 0.035, 0.03, 0.03),
                (y + 0.02, 0, z, 0.035, 0.03, 0.03), (y + 0.045, 0, z, 0.01, 0.01, 0.01)]
        if z < -0.12:
            ball[0] = (y - rng.uniform(0.05, 0.25), 0, z - 0.01, 0.012, 0.012, 0.012)
        mesh.tube("hair", ball, "head", colour, wrinkles=0.002)
    if style == "cap":
        across = np.linspace(0.06, -0.06, 5)
        rim = np.stack([across, np.full(5, 1.695), 0.10 - 4 * across ** 2], -1)
        tip = rim + np.stack([0 * across, -0.015 - 0 * across, 0.075 - 8 * across ** 2], -1)
        mesh.grid("hair", np.array([tip, rim]), "head", colour * 0.8)
        mesh.grid("hair", np.array([rim, tip]) - (0, 0.004, 0), "head", colour * 0.4)


def _dress(mesh, rng, look):
    """Clothes are the body's own tubes, thickened and coloured where cloth covers them."""
    skin, girth, female = look["skin"], look["girth"], look["female"]
    top, bottom, shoe = fabric(rng), fabric(rng), fabric(rng) * 0.8
    shares = [0.55, 0.2, 0.12, 0.13] if female else [0.75, 0.25, 0, 0]
    outfit = rng.choice(["trousers", "shorts", "skirt", "dress"], p=shares)
    jacket = rng.random() < 0.3
    coat = jacket and rng.random() < 0.35
    bottom = top if outfit == "dress" else bottom
    sleeve = 0.865 if jacket else rng.choice([0.87, 1.0, 1.17, 1.25, 1.45], p=[0.3, 0.08, 0.35, 0.2, 0.07])
    leg_end = {"trousers": rng.choice([0.09, 0.2], p=[0.85, 0.15]), "shorts": rng.uniform(0.45, 0.68)}.get(outfit, 2.0)
    hem = rng.uniform(0.86, 0.99) if outfit != "dress" else 0.9
    loose = rng.uniform(0.006, 0.02) + 0.014 * jacket
    wide = rng.uniform(0.002, 0.022)
    shoulders = 0.9 if female else rng.uniform(0.97, 1.06)

    def flesh(position):
        """Weight shows at belly, hips and bust more than at the shoulders."""
        belly = np.exp(-(((position - 1.08) / 0.13) ** 2))
        return 1 + (girth - 1) * (0.6 + 0.9 * belly)
    torso = [(p, x, z, w * (shoulders if p > 1.25 else 1.0) * (1.04 if female and p < 1.0 else 1.0),
              f * (1.16 if female and 1.25 < p < 1.35 else 1.0), b) for p, x, z, w, f, b in _scaled(_TORSO, flesh)]
    paint = _pattern(rng, top)
    if jacket:
        shirt, opening = fabric(rng), rng.choice([0.0, 0.02, 0.05])
        paint = _split(lambda m: (m[:, 2] > 0) & (np.abs(m[:, 0]) < opening + 0.25 * np.clip(m[:, 1] - 1.25, 0, 1)),
                       shirt, paint)
    neckline = rng.uniform(1.40, 1.48) if not jacket else 1.49
    dressed = _split(lambda m: m[:, 1] > neckline + 0.05 * (m[:, 2] < 0), skin,
                     _split(lambda m: m[:, 1] > hem, paint, bottom))
    mesh.tube("torso", torso, chained(("chest", "spine", "pelvis"), 0.06), dressed, square=2.5, wrinkles=0.005,
              thicken=lambda y: loose * (y > hem) + 0.004)
    _sides(mesh, rng, look, {"sleeve": sleeve, "paint": paint if not jacket else _pattern(rng, top), "top": top,
                             "bottom": bottom, "leg_end": leg_end, "wide": wide, "loose": loose, "shoe": shoe,
                             "shoulders": shoulders})
    if outfit in ("skirt", "dress") or coat:
        end = rng.uniform(0.4, 0.7) if coat else rng.uniform(0.25, 0.7)
        flare = rng.uniform(0.0, 0.1) * (0.3 if coat else 1.0)
        fall = [(end - 0.005, 0, -0.01, 0.1, 0.08, 0.08),
                (end, 0, -0.01, 0.19 * girth + flare, 0.15 + flare, 0.16 + flare),
                (0.90, 0, -0.01, 0.185 * girth, 0.125 * girth, 0.15 * girth),
                (1.05, 0, -0.01, 0.160 * girth, 0.115 * girth, 0.115 * girth), (1.10, 0, -0.01, 0.13, 0.09, 0.09)]
        cloth = paint if coat or outfit == "dress" else _pattern(rng, bottom)
        mesh.tube("skirt", fall, hanging, cloth, wrinkles=0.010)
    _luggage(mesh, rng)


def _sides(mesh, rng, look, worn):
    skin, girth = look["skin"], look["girth"]
    limb = 0.93 * (1 + 0.7 * (girth - 1)) * (0.9 if look["female"] else 1.0)
    legs = _pattern(rng, worn["bottom"]) if rng.random() < 0.15 else worn["bottom"]
    socks = fabric(rng) if rng.random() < 0.3 else skin
    for side, name in ((1, "left"), (-1, "right")):
        arm = (f"{name}_arm", f"{name}_forearm", f"{name}_hand")
        rows = [(p, x * (worn["shoulders"] if p > 1.3 else 1.0), *rest)
                for p, x, *rest in _mirrored(_scaled(_ARM, limb), side)]
        sleeved = _split(lambda m: m[:, 1] > worn["sleeve"], worn["paint"], skin)
        mesh.tube(f"{name}_arm", rows, chained(arm, 0.04), sleeved, wrinkles=0.003,
                  thicken=lambda y: worn["loose"] * (y > worn["sleeve"]) * np.clip((1.5 - y) / 0.08, 0.3, 1))
        mesh.tube(f"{name}_arm", _mirrored(_HAND, side), f"{name}_hand", skin, square=2.6)
        mesh.tube(f"{name}_arm", _mirrored(_THUMB, side), f"{name}_hand", skin)
        leg = (f"{name}_thigh", f"{name}_shin", f"{name}_foot")
        bare = _split(lambda m: m[:, 1] < 0.22, socks, skin)
        mesh.tube(f"{name}_leg", _mirrored(_scaled(_LEG, limb * 1.05), side), chained(leg, 0.05),
                  _split(lambda m: m[:, 1] > worn["leg_end"], legs, bare), wrinkles=0.005,
                  thicken=lambda y: (0.004 + worn["wide"] * np.clip((0.95 - y) / 0.2, 0, 1)) * (y > worn["leg_end"]))
        sole = _split(lambda m: m[:, 1] < 0.016, worn["shoe"] * 0.3 + 0.1, worn["shoe"])
        mesh.tube(f"{name}_leg", _mirrored(_SHOE, side), f"{name}_foot", sole, axis="z", square=2.8, gloss=0.15)


def _luggage(mesh, rng):
    kind = rng.choice(["none", "backpack", "bag"], p=[0.8, 0.12, 0.08])
    colour = fabric(rng)
    if kind == "backpack":
        pack = [(1.02, 0, -0.20, 0.11, 0.07, 0.07), (1.05, 0, -0.20, 0.15, 0.09, 0.09),
                (1.35, 0, -0.20, 0.14, 0.09, 0.08), (1.44, 0, -0.18, 0.09, 0.06, 0.05)]
        mesh.tube("luggage", pack, "chest", colour, square=4, wrinkles=0.004)
    if kind == "bag":
        x = rng.choice([-1, 1])
        bag = [(0.42, 0.178 * x, 0, 0.05, 0.12, 0.12), (0.44, 0.178 * x, 0, 0.06, 0.14, 0.14),
               (0.62, 0.178 * x, 0, 0.05, 0.13, 0.13), (0.64, 0.178 * x, 0, 0.02, 0.10, 0.10),
               (0.74, 0.178 * x, 0, 0.01, 0.03, 0.03)]
        mesh.tube("luggage", bag, "left_hand" if x > 0 else "right_hand", colour, square=4)
