MODEL (
  name gold.dim_customer,
  description 'Customers as they were found each hour, with the span in which that held. SCD type 2 by time: the register only has the present, and says when a customer changed. Of two changes in one hour the last one is kept.',
  kind SCD_TYPE_2_BY_TIME (
    unique_key customer_id,
    updated_at_name updated_at,
    -- Else a new customer would hold since 1970, and one who comes late since the hour in which we heard of them.
    updated_at_as_valid_from TRUE
  ),
  cron '@hourly',
  grain customer_key,
  audits (
    unique_values(columns := (customer_key)),
    spans_do_not_overlap(id := customer_id)
  )
);

SELECT
  @surrogate_key(customer_id, DATE_FORMAT(updated_at, 'yyyyMMddHHmmssSSSSSS')) AS customer_key,
  customer_id,
  name,
  email,
  city,
  country,
  segment,
  updated_at
FROM silver.customers
