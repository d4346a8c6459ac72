/**
 * Natural order of names: numbers compare as numbers, all else by UTF-16 unit; where one name has a number and the other has none,
 * it stands for its digit 0. Total: 0 only for equal names.
 */
export function naturalCompare(a: string, b: string): number {
  let i = commonUnits(a, b)
  // the first difference may be in the middle of a number
  while (i > 0 && isDigit(a, i - 1)) i--
  let j = i
  while (i < a.length && j < b.length) {
    const [isNumber, isOther] = [isDigit(a, i), isDigit(b, j)]
    if (isNumber && isOther) {
      const [end, otherEnd] = [numberEnd(a, i), numberEnd(b, j)]
      const order = compareNumbers(a, i, end, b, j, otherEnd)
      if (order !== 0) return order
      i = end
      j = otherEnd
    } else {
      const unit = isNumber ? ZERO : a.charCodeAt(i++)
      const other = isOther ? ZERO : b.charCodeAt(j++)
      if (unit !== other) return unit < other ? -1 : 1
    }
  }
  const [isLonger, otherIsLonger] = [i < a.length, j < b.length]
  if (isLonger !== otherIsLonger) return isLonger ? 1 : -1
  // `a01` and `a1`
  return comparePlain(a, b)
}

/** Length of what two texts begin with. */
function commonUnits(a: string, b: string): number {
  const most = Math.min(a.length, b.length)
  let at = 0
  while (at < most && a.charCodeAt(at) === b.charCodeAt(at)) at++
  return at
}

function numberEnd(text: string, begin: number): number {
  let end = begin + 1
  while (end < text.length && isDigit(text, end)) end++
  return end
}

/** Of the digits at `[i, end)` of one text and at `[j, otherEnd)` of another. */
function compareNumbers(
  a: string,
  begin: number,
  end: number,
  b: string,
  otherBegin: number,
  otherEnd: number,
): number {
  let [i, j] = [begin, otherBegin]
  while (i < end - 1 && a.charCodeAt(i) === ZERO) i++
  while (j < otherEnd - 1 && b.charCodeAt(j) === ZERO) j++
  const [length, otherLength] = [end - i, otherEnd - j]
  if (length !== otherLength) return length < otherLength ? -1 : 1
  for (; i < end; i++, j++) {
    const difference = a.charCodeAt(i) - b.charCodeAt(j)
    if (difference !== 0) return difference < 0 ? -1 : 1
  }
  return 0
}

/** Indices of the names in natural order. */
export function naturalOrder(names: readonly string[]): Uint32Array {
  const order = Uint32Array.from(names, (_, i) => i)
  const compare = (i: number, j: number): number =>
    naturalCompare(names[i] as string, names[j] as string)
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
