/** A network device of one host, in each direction. */
export interface NetworkDevice {
  readonly bytesPerSecond: number
}

/** A rank that has buckets in its host's memory, or that wants them. */
export interface NetworkRank {
  readonly rank: number
  /** Ranks of one host read each other's memory without a network. */
  readonly host: number
  /** Indices of its devices: one that several ranks share, or several of its own. */
  readonly devices: readonly number[]
}

export interface OwnedBucket {
  /** Index in the owners. */
  readonly owner: number
  readonly bytes: number
}

/** Which receiver reads a bucket, before it passes it on to the others. */
export interface BucketRead {
  /** Index in the buckets. */
  readonly bucket: number
  /** Index in the receivers. */
  readonly receiver: number
  /** Devices that it goes over; null: memory of the receiver's own host. */
  readonly path: { readonly from: number; readonly to: number } | null
}

export interface ReadInstance {
  readonly devices: readonly NetworkDevice[]
  readonly owners: readonly NetworkRank[]
  readonly receivers: readonly NetworkRank[]
  readonly buckets: readonly OwnedBucket[]
}
