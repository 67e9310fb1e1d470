/* First-person pictures, operation by operation what torch_backend.py does to one copy; see there for the names. */
#define TEXELS 16
#define EYE 0.5f
#define THING 0.6f
#define NEAR 0.1f
#define FADE 0.12f
#define SIDE 0.8f
#define LEAST 1e-6f

typedef struct {
    i64 H, W, S, K, floor, ceiling;
    const float *across, *up, *flat;
    const uint8_t *texels, *solid;
} Camera;

/* What a column of the picture sees. */
typedef struct {
    float ahead_x, ahead_y, depth, place, light;
    i64 texture;
} Column;

static inline float nonzero(float x) { return fabsf(x) < LEAST ? LEAST : x; }

static inline i64 clamped(float x, float high) { return (i64)(x < 0 ? 0 : x > high ? high : x); }

static inline i64 texel(i64 texture, float u, float v) {
    return (texture * TEXELS + clamped(v * TEXELS, TEXELS - 1)) * TEXELS + clamped(u * TEXELS, TEXELS - 1);
}

/* The first wall that is entered through a line of constant p; `step_p` and `step_q` are strides of the grid. */
static inline float wall(const uint8_t *grid, i64 S, i64 step_p, i64 step_q, float p, float q, float ahead, float along,
                         float *place, i64 *texture) {
    i64 forward = ahead > 0;
    for (i64 k = 0; k <= S; k++) {
        i64 line = forward ? k : S - k, entered = forward ? line : line - 1;
        float depth = ((float)line - p) / ahead;
        if (depth <= 0 || entered < 0 || entered >= S) continue;
        float at = q + depth * along;
        uint8_t found = grid[entered * step_p + clamped(at, (float)(S - 1)) * step_q];
        if (found) {
            *place = at - floorf(at);
            *texture = found;
            return depth;
        }
    }
    return INFINITY;
}

static void look(const Camera *c, const uint8_t *grid, float x, float y, float cosine, float sine, Column *columns) {
    for (i64 w = 0; w < c->W; w++) {
        Column *to = columns + w;
        float a = c->across[w], place_x = 0, place_y = 0;
        i64 texture_x = 0, texture_y = 0;
        to->ahead_x = nonzero(cosine - a * sine);
        to->ahead_y = nonzero(sine + a * cosine);
        float depth_x = wall(grid, c->S, 1, c->S, x, y, to->ahead_x, to->ahead_y, &place_x, &texture_x);
        float depth_y = wall(grid, c->S, c->S, 1, y, x, to->ahead_y, to->ahead_x, &place_y, &texture_y);
        int first = depth_x <= depth_y;
        to->depth = first ? depth_x : depth_y;
        to->place = first ? place_x : place_y;
        to->texture = first ? texture_x : texture_y;
        to->light = first ? 1.0f : SIDE;
    }
}

static void draw(const Camera *c, const uint8_t *grid, float x, float y, float cosine, float sine, const float *thing_x,
                 const float *thing_y, const i64 *kind, const uint8_t *there, uint8_t *to) {
    i64 H = c->H, W = c->W, K = c->K;
    Column columns[W];
    float far[K + 1];
    i64 order[K + 1], seen = 0, u_of[(K + 1) * W]; /* of the things that are seen, the nearest first; -1: not here */
    look(c, grid, x, y, cosine, sine, columns);
    for (i64 k = 0; k < K; k++) {
        float dx = thing_x[k] - x, dy = thing_y[k] - y, right = dy * cosine - dx * sine;
        i64 somewhere = 0;
        far[k] = dx * cosine + dy * sine;
        if (!there[k] || !(far[k] > NEAR)) continue;
        for (i64 w = 0; w < W; w++) {
            float u = (c->across[w] * far[k] - right) / THING + 0.5f;
            int in = u >= 0 && u < 1 && far[k] < columns[w].depth;
            u_of[k * W + w] = in ? clamped(u * TEXELS, TEXELS - 1) : -1;
            somewhere |= in;
        }
        if (!somewhere) continue;
        i64 i = seen++;
        for (; i > 0 && far[order[i - 1]] > far[k]; i--) order[i] = order[i - 1];
        order[i] = k;
    }
    for (i64 h = 0; h < H; h++) {
        float up = c->up[h], flat = c->flat[h];
        i64 ground = up < 0 ? c->floor : c->ceiling, rows[K + 1], some = 0;
        for (i64 i = 0; i < seen; i++) {
            float v = (EYE + up * far[order[i]]) / THING;
            rows[i] = v >= 0 && v < 1 ? clamped(v * TEXELS, TEXELS - 1) : -1;
            some |= rows[i] >= 0;
        }
        for (i64 w = 0; w < W; w++) {
            const Column *from = columns + w;
            float height = EYE + up * from->depth, depth, light = 1.0f;
            i64 index = -1;
            if (some)
                for (i64 i = 0; i < seen && index < 0; i++) {
                    i64 u = u_of[order[i] * W + w];
                    if (rows[i] < 0 || u < 0) continue;
                    i64 at = (kind[order[i]] * TEXELS + rows[i]) * TEXELS + u;
                    if (c->solid[at]) index = at, depth = far[order[i]];
                }
            if (index < 0 && height >= 0 && height < 1) {
                index = texel(from->texture, from->place, height);
                depth = from->depth;
                light = from->light;
            } else if (index < 0) {
                float fx = x + flat * from->ahead_x, fy = y + flat * from->ahead_y;
                index = texel(ground, fx - floorf(fx), fy - floorf(fy));
                depth = flat;
            }
            float shade = light / (1 + FADE * depth);
            for (int i = 0; i < 3; i++) to[(h * W + w) * 3 + i] = (uint8_t)((float)c->texels[index * 3 + i] * shade);
        }
    }
}

void FN(rays_frames)(i64 B, i64 H, i64 W, i64 S, i64 K, i64 floor, i64 ceiling, i64 threads, const float *across,
                     const float *up, const float *flat, const uint8_t *texels, const uint8_t *solid,
                     const uint8_t *grid, const float *x, const float *y, const float *cosine, const float *sine,
                     const float *thing_x, const float *thing_y, const i64 *kind, const uint8_t *there,
                     const uint8_t *where, uint8_t *to) {
    Camera camera = {H, W, S, K, floor, ceiling, across, up, flat, texels, solid};
#pragma omp parallel for num_threads(team(B * H * W, threads)) schedule(dynamic, 4)
    for (i64 b = 0; b < B; b++)
        if (!where || where[b])
            draw(&camera, grid + b * S * S, x[b], y[b], cosine[b], sine[b], thing_x + b * K, thing_y + b * K,
                 kind + b * K, there + b * K, to + b * H * W * 3);
}
