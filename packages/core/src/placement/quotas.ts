/** Pieces that cannot be divided, of which some links could bring each. */
export interface PieceSet {
  /** Ascending, none negative. */
  readonly links: readonly number[]
  bytes: number
}

/** How many bytes of a set's pieces each link is to bring. */
export interface Quotas {
  readonly links: readonly number[]
  /** Bytes left, by link. */
  readonly left: Map<number, number>
  /** The link that brings no more than its quota; each of the others brings less than one piece more. */
  readonly exact: number
}

/** Bytes between a set and a link, both ways. Links are nodes of their own number, sets negative ones. */
type Graph = Map<number, Map<number, number>>

const ROUNDS_MAX = 200

/**
 * Divides sets of pieces among their links, so that the largest of the loads (bytes by link, `others` at first) is as small as it can
 * be. The quotas form a forest of links and sets, in which each link has one set at most where it is not the exact one: so undivided
 * pieces too leave it with less than one of them above its load (Lenstra, Shmoys and Tardos, 1990, for unrelated machines).
 */
export function divide(
  sets: readonly PieceSet[],
  others: ReadonlyMap<number, number>,
): readonly Quotas[] {
  const divided = sets.map(({ links, bytes }) => ({ links, bytes, left: new Map() }))
  const loads = new Map(others)
  for (let round = 0; round < ROUNDS_MAX; round++) {
    let moved = 0
    for (const set of divided) moved += fill(set, loads)
    if (moved < 1) break
  }
  const forest = forestOf(divided)
  const exact = exactLinks(forest)
  return divided.map(({ links }, index) => ({
    links,
    left: new Map(forest.get(nodeOf(index))),
    exact: exact.get(nodeOf(index)) ?? (links[0] as number),
  }))
}

/** The link that is to bring a piece of so many bytes, by which its quota gets less. */
export function takeLink({ links, left, exact }: Quotas, bytes: number): number {
  const of = (link: number) => left.get(link) ?? 0
  const able = links.filter((link) => of(link) > 0 && (link !== exact || of(link) >= bytes))
  // nobody is only where numbers were rounded
  const link =
    able.length === 0 ? exact : able.reduce((best, one) => (of(one) > of(best) ? one : best))
  left.set(link, of(link) - bytes)
  return link
}

/** Makes the links of one set as equal as it allows, as water fills a vessel with steps. Returns bytes that have moved. */
function fill(
  { links, bytes, left }: PieceSet & Pick<Quotas, 'left'>,
  loads: Map<number, number>,
): number {
  const base = (link: number) => (loads.get(link) ?? 0) - (left.get(link) ?? 0)
  const ascending = links.toSorted((a, b) => base(a) - base(b))
  let level = 0
  let below = 0
  for (const [index, link] of ascending.entries()) {
    below += base(link)
    level = (bytes + below) / (index + 1)
    const next = ascending[index + 1]
    if (next === undefined || level <= base(next)) break
  }
  let moved = 0
  for (const link of links) {
    const before = left.get(link) ?? 0
    const now = Math.max(0, level - base(link))
    loads.set(link, base(link) + now)
    left.set(link, now)
    moved += Math.abs(now - before)
  }
  return moved
}

const nodeOf = (set: number) => -1 - set

/** The same bytes of each set and of each link, without a cycle. */
function forestOf(sets: readonly Pick<Quotas, 'left'>[]): Graph {
  const forest: Graph = new Map()
  for (const [index, { left }] of sets.entries()) {
    for (const [link, bytes] of left) {
      if (bytes > 0) connect(forest, nodeOf(index), link, bytes)
    }
  }
  return forest
}

/** Adds an edge; where that makes a cycle, its edges get and lose the same bytes by turns until one of them has none. */
function connect(forest: Graph, set: number, link: number, bytes: number): void {
  for (const node of [set, link]) {
    if (!forest.has(node)) forest.set(node, new Map())
  }
  const path = pathBetween(forest, set, link) ?? []
  const edges = path.slice(1).map((node, i) => [path[i] as number, node] as const)
  const between = ([a, b]: readonly [number, number]) => forest.get(a)?.get(b) as number
  const losing = edges.filter((_, i) => i % 2 === 1)
  const moved = edges.length === 0 ? 0 : Math.min(bytes, ...losing.map(between))
  for (const [i, edge] of edges.entries()) {
    put(forest, edge, between(edge) + (i % 2 === 1 ? -moved : moved))
  }
  put(forest, [set, link], bytes - moved)
}

function put(graph: Graph, [a, b]: readonly [number, number], bytes: number): void {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    if (bytes > 0) graph.get(from)?.set(to, bytes)
    else graph.get(from)?.delete(to)
  }
}

/** The nodes from one to the other, both among them. */
function pathBetween(forest: Graph, at: number, to: number, from?: number): number[] | undefined {
  if (at === to) return [at]
  for (const next of forest.get(at)?.keys() ?? []) {
    const rest = next === from ? undefined : pathBetween(forest, next, to, at)
    if (rest !== undefined) return [at, ...rest]
  }
  return undefined
}

/** By set: of each tree one link is the root, and each set's exact link the one towards it. */
function exactLinks(forest: Graph): Map<number, number> {
  const exact = new Map<number, number>()
  const visited = new Set<number>()
  const visit = (link: number) => {
    visited.add(link)
    for (const set of forest.get(link)?.keys() ?? []) {
      if (exact.has(set)) continue
      exact.set(set, link)
      for (const other of forest.get(set)?.keys() ?? []) {
        if (other !== link) visit(other)
      }
    }
  }
  for (const node of forest.keys()) {
    if (node >= 0 && !visited.has(node)) visit(node)
  }
  return exact
}
