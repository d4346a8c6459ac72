/**
 * A string whose plain comparison is the natural order of the name: each run of digits becomes `0`,
 * its length as one character, and the digits without leading zeros. `layers.2` then comes before
 * `layers.10`.
 */
export function naturalKey(name: string): string {
  const { length } = name
  let key = ''
  let copied = 0
  for (let at = 0; at < length; at++) {
    if (!isDigit(name, at)) continue
    key += name.slice(copied, at)
    let end = at + 1
    while (end < length && isDigit(name, end)) end++
    while (at < end - 1 && name.charCodeAt(at) === ZERO) at++
    key += `0${String.fromCharCode(Math.min(end - at, 0xffff))}${name.slice(at, end)}`
    copied = end
    at = end
  }
  return copied === 0 ? name : key + name.slice(copied)
}

/**
 * Natural order of names: numbers compare as numbers, all else by UTF-16 unit. Total: 0 only for
 * equal names.
 */
export function naturalCompare(a: string, b: string): number {
  return comparePlain(naturalKey(a), naturalKey(b)) || comparePlain(a, b)
}

/** Indices of the names in natural order. */
export function naturalOrder(names: readonly string[]): Uint32Array {
  const keys = names.map(naturalKey)
  const order = Uint32Array.from(names, (_, i) => i)
  const compare = (i: number, j: number): number =>
    comparePlain(keys[i] as string, keys[j] as string) ||
    comparePlain(names[i] as string, names[j] as string)
  // tables mostly come sorted: one pass then saves the sort
  for (let i = 1; i < names.length; i++) if (compare(i - 1, i) > 0) return order.sort(compare)
  return order
}

const ZERO = 0x30

function isDigit(name: string, at: number): boolean {
  const unit = name.charCodeAt(at)
  return unit >= ZERO && unit <= 0x39
}

function comparePlain(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}
