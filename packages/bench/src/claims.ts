/** A figure that must reach a bound: a line of the verdict. */
export interface Claim {
  /** Such as `update dense: of the pinned H2D rate`. */
  readonly what: string
  readonly figure: number
  readonly unit: '%' | 's' | 'us' | 'GB/s' | 'MiB'
  readonly must: 'at_least' | 'at_most'
  readonly bound: number
  readonly holds: boolean
}

/** The figure must not be below `bound`. Not a number: it does not hold. */
export function atLeast(what: string, figure: number, bound: number, unit: Claim['unit']): Claim {
  return { what, figure, unit, must: 'at_least', bound, holds: figure >= bound }
}

/** The figure must not be above `bound`. Not a number: it does not hold. */
export function atMost(what: string, figure: number, bound: number, unit: Claim['unit']): Claim {
  return { what, figure, unit, must: 'at_most', bound, holds: figure <= bound }
}

/** `holds: update dense: of the pinned H2D rate 97.1 %, at least 96 %`. */
export function claimLine(claim: Claim): string {
  const { what, figure, unit, holds } = claim
  return `${holds ? 'holds' : 'FALLS SHORT'}: ${what} ${shown(figure)} ${unit}, ${boundText(claim)}`
}

/** `at least 96 %`. */
export function boundText({
  must,
  bound,
  unit,
}: Pick<Claim, 'must' | 'bound'> & { readonly unit: string }): string {
  return `${must === 'at_least' ? 'at least' : 'at most'} ${shown(bound)} ${unit}`
}

/** With four digits at most. */
export function shown(figure: number): string {
  return String(Number(figure.toPrecision(4)))
}
