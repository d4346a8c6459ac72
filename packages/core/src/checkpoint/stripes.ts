import { assert } from './assert.ts'

/**
 * Bytes of a stripe: large enough to be read sequentially, small enough that neighbours load
 * different links.
 */
export const STRIPE_BYTES = 256 * 2 ** 20

/**
 * Which of `daemonCount` daemons owns each tensor of a checkpoint that they register together: the
 * tensors, in natural order, are cut into stripes of whole tensors, which end once they have
 * `stripeBytes`, and each stripe goes to the daemon that has the fewest bytes, the first of equals:
 * with stripes of one size, to each in turn. No daemon has more bytes than another by more than a
 * stripe and a tensor.
 *
 * @param bytes of each tensor in natural order
 */
export function stripeOwners(
  bytes: ArrayLike<number>,
  daemonCount: number,
  stripeBytes = STRIPE_BYTES,
): Uint32Array {
  assert(daemonCount > 0 && stripeBytes > 0, 'no daemon or no stripe')
  const owners = new Uint32Array(bytes.length)
  const held = new Float64Array(daemonCount)
  let owner = 0
  let filled = 0
  for (let i = 0; i < bytes.length; i++) {
    if (filled >= stripeBytes) {
      owner = leastIndex(held)
      filled = 0
    }
    owners[i] = owner
    held[owner] = (held[owner] as number) + (bytes[i] as number)
    filled += bytes[i] as number
  }
  return owners
}

function leastIndex(values: Float64Array): number {
  let least = 0
  for (let i = 1; i < values.length; i++) {
    if ((values[i] as number) < (values[least] as number)) least = i
  }
  return least
}
